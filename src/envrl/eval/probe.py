"""How well a model knows its world: state prediction and inverse dynamics on transitions that it was never trained on.

The transitions are fixed by (split, seed), half of an expert's play and half of random play, so that numbers of
different updates and runs compare.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from envrl.envs.protocol import TextEnv
from envrl.models.forward import logits_of, row_states
from envrl.models.load import LanguageModel
from envrl.progress import Reporter
from envrl.rollout.auxiliary import inverse_pairs, state_pairs
from envrl.rollout.randomness import key_of
from envrl.rollout.scripts import HasExpert, attempt_script, make_script
from envrl.rollout.wording import Pair, Wording
from envrl.types import Task, Trajectory, Transition

_BUDGET = 16384
_PREPOSITIONS = {"to", "from", "with", "in", "on"}
_IN_OTHER_WORDS = {"go": "arrive", "take": "pick", "use": "turn"}
"""Verbs whose answer in the household worlds says the same by another word: it gives the act away just as well."""


@dataclass(frozen=True, slots=True)
class TargetScore:
    """The model's log-prob (nats) of a target, its token count, and whether greedy decoding would give just it."""

    logprob: float
    tokens: int
    exact: bool


def probe_episodes(env: TextEnv, tasks: Sequence[Task], count: int, max_steps: int, seed: int) -> list[Trajectory]:
    """Return `count` scripted episodes over the split, the expert's and random play's in turn."""
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
    """Return the score of every pair's target given its prompt; one that does not fit the context has no tokens.

    `poll` may raise; `watch` is told how many are scored.
    """
    lengths = [len(pair.prompt) + len(pair.target) for pair in pairs]
    order = sorted((i for i in range(len(pairs)) if lengths[i] <= model.context), key=lambda i: lengths[i])
    scores = {i: TargetScore(0.0, 0, False) for i in range(len(pairs)) if lengths[i] > model.context}
    while order:
        longest = len(pairs[order[-1]].prompt) + len(pairs[order[-1]].target)
        batch = [order.pop() for _ in range(min(len(order), max(1, _BUDGET // longest)))]
        poll()
        ids = torch.full((len(batch), longest), model.codec.pad, dtype=torch.long)
        for row, index in enumerate(batch):
            tokens = (*pairs[index].prompt, *pairs[index].target)
            ids[row, : len(tokens)] = torch.tensor(tokens)
        states = row_states(model.network, ids.to(model.device))
        for row, index in enumerate(batch):
            start, count = len(pairs[index].prompt), len(pairs[index].target)
            logprobs = logits_of(model.network, states[row, start - 1 : start - 1 + count]).log_softmax(-1)
            target = ids[row, start : start + count].to(logprobs.device)
            exact = bool((logprobs.argmax(-1) == target).all())
            scores[index] = TargetScore(float(logprobs.gather(1, target[:, None]).sum()), count, exact)
        watch(len(scores))
    return [scores[i] for i in range(len(pairs))]


def names_action(step: Transition) -> bool:
    """Return whether the answer's text names what was done: the verb, and every thing with its number.

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
    wording: Wording,
    trajectories: Sequence[Trajectory],
    poll: Callable[[], None] = lambda: None,
    reporter: Reporter | None = None,
) -> dict[str, float]:
    """Return state_nll (nats a token), the shares of whole answers and whole commands that greedy decoding gets right.

    `inverse_accuracy_unnamed` is the latter on the transitions whose answer does not name the act; absent without any.
    """
    steps = [step for trajectory in trajectories for step in trajectory.transitions]
    if not steps:
        return {}
    reporter = reporter or Reporter()
    with reporter.phase("probe", 2 * len(steps), unit="targets") as phase:
        states = score_targets(model, state_pairs(trajectories, wording), poll, phase.show)
        inverse = score_targets(
            model, inverse_pairs(trajectories, wording), poll, lambda done: phase.show(len(steps) + done)
        )
    unnamed = [score for step, score in zip(steps, inverse, strict=True) if not names_action(step)]
    result = {
        "state_nll": -sum(s.logprob for s in states) / max(sum(s.tokens for s in states), 1),
        "state_exact": sum(s.exact for s in states) / len(states),
        "inverse_accuracy": sum(s.exact for s in inverse) / len(inverse),
    }
    if unnamed:
        result["inverse_accuracy_unnamed"] = sum(s.exact for s in unnamed) / len(unnamed)
    return result
