"""Probe a model's knowledge of its world: state prediction and inverse dynamics on transitions it never trained on.

(split, seed) fix the transitions, half from an expert and half from random play, so that figures of different updates
and runs are comparable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch

from envrl.envs.protocol import TextEnv
from envrl.eval.questions import Questions
from envrl.models.forward import logits_of
from envrl.models.load import LanguageModel
from envrl.models.rows import runs_as_tree, states_of_rows
from envrl.progress import Reporter
from envrl.randomness import key_of
from envrl.rendering.kinds import TOKEN_KINDS, kinds_of
from envrl.rollout.scripts import HasExpert, attempt_script, make_script
from envrl.samples.packing import pack_ids
from envrl.types import Pair, Task, Trajectory, Transition

_BUDGET = 4096
"""Token budget of a pass; the shared prefix of several prompts counts once."""
_PREPOSITIONS = {"to", "from", "with", "in", "on"}
_IN_OTHER_WORDS = {"go": "arrive", "take": "pick", "use": "turn"}
"""Verbs that the answers of the household worlds replace by another word, which also reveals the action."""


@dataclass(frozen=True, slots=True)
class TargetScore:
    """The model's log-prob (nats) of a target, its token count, and whether greedy decoding gives exactly it."""

    logprob: float
    tokens: int
    exact: bool
    token_logprobs: tuple[float, ...] = ()


def probe_episodes(env: TextEnv, tasks: Sequence[Task], count: int, max_steps: int, seed: int) -> list[Trajectory]:
    """Return `count` scripted episodes of the split, alternating between the expert and random play."""
    order = sorted(tasks, key=lambda task: key_of(seed, "probe", task.id))[:count]
    scripts = ("expert", "random") if isinstance(env, HasExpert) else ("random",)
    return [
        attempt_script(env, task, partial(make_script, scripts[i % len(scripts)], env, task, seed), max_steps)
        for i, task in enumerate(order)
    ]


@torch.no_grad()
def score_targets(
    model: LanguageModel,
    pairs: Sequence[Pair],
    poll: Callable[[], None] = lambda: None,
    watch: Callable[[int], None] = lambda _: None,
) -> list[TargetScore]:
    """Return the score of every pair's target given its prompt; a pair longer than the context gets 0 tokens.

    `poll` may raise; `watch` gets the number of pairs scored.
    """
    rows = [np.array((*pair.prompt, *pair.target), dtype=np.int32) for pair in pairs]
    fit = [i for i, row in enumerate(rows) if len(row) <= model.context]
    scores = [TargetScore(0.0, 0, False)] * len(pairs)
    batches = pack_ids([rows[i] for i in fit], _BUDGET, padded=not runs_as_tree(model.network))
    done = len(pairs) - len(fit)
    for batch in ([fit[place] for place in places] for places in batches):
        poll()
        before = [np.arange(len(pairs[i].prompt), len(rows[i]), dtype=np.int32) - 1 for i in batch]
        states = states_of_rows(model.network, [rows[i] for i in batch], model.codec.pad, asked=before)
        for number, (index, places) in enumerate(zip(batch, before, strict=True)):
            token_N = torch.from_numpy(places).to(model.device)
            hidden = states.at(torch.full_like(token_N, number), token_N)
            logprobs = logits_of(model.network, hidden).log_softmax(-1)
            target = torch.tensor(pairs[index].target, device=logprobs.device)
            exact = bool((logprobs.argmax(-1) == target).all())
            chosen = logprobs.gather(1, target[:, None])
            scores[index] = TargetScore(float(chosen.sum()), len(target), exact, tuple(chosen[:, 0].tolist()))
        done += len(batch)
        watch(done)
    return scores


def names_action(step: Transition) -> bool:
    """Return whether the answer's text names the action: the verb, and every thing with its number.

    "You pick up the cd 1 from the desk 2." names `take cd 1 from desk 2`, and neither `take cd 2 from desk 1` nor
    `examine cd 1`.
    """
    command, answer = step.action.text.lower(), step.next_observation.text.lower()
    words = set(re.findall(r"\w+", answer))
    things = re.findall(r"[^\W\d]+ \d+", command)
    others = [word for word in re.findall(r"\w+", re.sub(r"[^\W\d]+ \d+", " ", command)) if word not in _PREPOSITIONS]
    return (
        bool(things or others)
        and all(re.search(rf"\b{thing}\b", answer) for thing in things)
        and all(word in words or _IN_OTHER_WORDS.get(word) in words for word in others)
    )


def probe(
    model: LanguageModel,
    questions: Questions,
    trajectories: Sequence[Trajectory],
    poll: Callable[[], None] = lambda: None,
    reporter: Reporter | None = None,
) -> dict[str, float]:
    """Return the probe's metrics from the `questions` about the transitions of these trajectories.

    `state_nll` is in nats per token, and again for each kind of token (`state_nll_number`, …); `state_exact` and
    `inverse_accuracy` are the shares of answers and commands that greedy decoding gets exactly right;
    `inverse_accuracy_unnamed` is the latter on transitions whose answer does not name the action, and absent if there
    are none.
    """
    steps = [step for trajectory in trajectories for step in trajectory.transitions]
    if not steps:
        return {}
    reporter = reporter or Reporter()
    with reporter.phase("probe", 2 * len(steps), unit="targets") as phase:
        states = score_targets(model, questions.state, poll, phase.show)
        inverse = score_targets(model, questions.inverse, poll, lambda done: phase.show(len(steps) + done))
    unnamed = [score for step, score in zip(steps, inverse, strict=True) if not names_action(step)]
    result = {
        "state_nll": -sum(s.logprob for s in states) / max(sum(s.tokens for s in states), 1),
        "state_exact": sum(s.exact for s in states) / len(states),
        "inverse_accuracy": sum(s.exact for s in inverse) / len(inverse),
    }
    result |= _by_kind(model, questions.state, states)
    if unnamed:
        result["inverse_accuracy_unnamed"] = sum(s.exact for s in unnamed) / len(unnamed)
    return result


def _by_kind(model: LanguageModel, pairs: Sequence[Pair], scores: Sequence[TargetScore]) -> dict[str, float]:
    """Return the nats per token of each kind of token that occurs in the targets."""
    sums, counts = np.zeros(len(TOKEN_KINDS)), np.zeros(len(TOKEN_KINDS))
    kinds = cache(lambda target: kinds_of(model.codec.texts(target)))
    for pair, score in zip(pairs, scores, strict=True):
        if score.tokens:
            np.add.at(sums, kinds(pair.target), score.token_logprobs)
            np.add.at(counts, kinds(pair.target), 1)
    return {f"state_nll_{kind}": -sums[n] / counts[n] for n, kind in enumerate(TOKEN_KINDS) if counts[n]}
