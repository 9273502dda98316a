"""How well a model knows its world: state prediction and inverse dynamics on transitions that it was never trained on.

The transitions are fixed by (split, seed), half of an expert's play and half of random play, so that numbers of
different updates and runs compare.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from envrl.envs.protocol import TextEnv
from envrl.models.forward import logits_of, row_states
from envrl.models.load import LanguageModel
from envrl.rollout.auxiliary import Form, Pair, inverse_pairs, state_pairs
from envrl.rollout.randomness import key_of
from envrl.rollout.runner import play_script
from envrl.rollout.scripts import HasExpert, make_script
from envrl.types import Task, Trajectory, Transition

_BUDGET = 16384


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
        play_script(env, task, make_script(scripts[i % len(scripts)], env, task, seed), max_steps)
        for i, task in enumerate(order)
    ]


@torch.no_grad()
def score_targets(
    model: LanguageModel, pairs: Sequence[Pair], poll: Callable[[], None] = lambda: None
) -> list[TargetScore]:
    """Return the score of every pair's target given its prompt."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].prompt) + len(pairs[i].target))
    scores: dict[int, TargetScore] = {}
    while order:
        longest = len(pairs[order[-1]].prompt) + len(pairs[order[-1]].target)
        batch = [order.pop() for _ in range(min(len(order), max(1, _BUDGET // longest)))]
        poll()
        ids = torch.full((len(batch), longest), model.codec.marks["pad"], dtype=torch.long)
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
    return [scores[i] for i in range(len(pairs))]


def names_action(step: Transition) -> bool:
    """Return whether the answer's text names what was done: every word of the command stands in it."""
    words = re.findall(r"\w+", step.action.text.lower())
    answer = set(re.findall(r"\w+", step.next_observation.text.lower()))
    return bool(words) and all(word in answer for word in words if word not in {"to", "from", "with", "go"})


def probe(
    model: LanguageModel, trajectories: Sequence[Trajectory], form: Form, poll: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Return state_nll (nats a token) and inverse_accuracy (whole commands), the latter also where no text names the act."""
    steps = [step for trajectory in trajectories for step in trajectory.transitions]
    if not steps:
        return {}
    states = score_targets(model, state_pairs(trajectories, model.codec, form), poll)
    inverse = score_targets(model, inverse_pairs(trajectories, model.codec, form), poll)
    unnamed = [score for step, score in zip(steps, inverse, strict=True) if not names_action(step)]
    result = {
        "state_nll": -sum(s.logprob for s in states) / sum(s.tokens for s in states),
        "state_exact": sum(s.exact for s in states) / len(states),
        "inverse_accuracy": sum(s.exact for s in inverse) / len(inverse),
    }
    if unnamed:
        result["inverse_accuracy_unnamed"] = sum(s.exact for s in unnamed) / len(unnamed)
    return result
