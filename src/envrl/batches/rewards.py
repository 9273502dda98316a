"""The rewards that a recipe adds to the world's: asked of the policy, checked, weighed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from envrl.batches.auxiliary import scheduled_weights
from envrl.config.schema import Reward
from envrl.errors import UserError
from envrl.registry import blame, find
from envrl.rendering.renderer import Renderer
from envrl.samples.rows import counted_term
from envrl.types import Example, FloatArray, Row, TrajectoryGroup, episodes_of

Logprobs = Callable[[Sequence[Row]], Mapping[str, FloatArray]]
"""`Engine.logprobs`."""
Chances = Callable[[Sequence[Example]], NDArray[np.float64]]
Array = NDArray[np.float64]


def with_rewards(
    groups: Sequence[TrajectoryGroup],
    rewards: Sequence[Reward],
    update: int,
    updates: int,
    renderer: Renderer,
    logprobs: Logprobs,
) -> tuple[list[TrajectoryGroup], dict[str, float]]:
    """Return the groups with Σ λ(t) · reward added to each step's own, and figures to log."""
    added, figures = [np.zeros(len(each.transitions)) for each in episodes_of(groups)], dict[str, float]()
    weights = scheduled_weights(rewards, update, updates)
    for each in rewards:
        weight = weights[each.name]
        figures[f"reward_weight/{each.name}"] = weight
        if not weight:
            continue
        asks = find("reward", each.name).traits.get("asks", each.name)
        found = rewards_of(each, groups, partial(chances_of, asks, renderer=renderer, logprobs=logprobs))
        added = [sum_S + weight * its_S for sum_S, its_S in zip(added, found, strict=True)]
        figures[f"reward/{each.name}"] = float(np.mean(np.concatenate([np.zeros(0), *found]))) if found else 0.0
    place = iter(added)
    return [
        replace(
            group,
            trajectories=tuple(
                replace(
                    trajectory,
                    transitions=tuple(
                        replace(step, reward=step.reward + float(extra))
                        for step, extra in zip(trajectory.transitions, next(place), strict=True)
                    ),
                )
                for trajectory in group.trajectories
            ),
        )
        for group in groups
    ], figures


def rewards_of(reward: Reward, groups: Sequence[TrajectoryGroup], chances: Chances) -> list[Array]:
    """Return a reward's numbers, one for each step of each episode; raise `UserError` if they are anything else."""
    entry = find("reward", reward.name)
    with blame(entry):
        found = [np.asarray(each, dtype=np.float64) for each in entry.target(groups, chances, **reward.settings)]
    lengths = [len(trajectory.transitions) for trajectory in episodes_of(groups)]
    if [each.shape for each in found] != [(length,) for length in lengths]:
        raise UserError(
            f"the {entry.called} must return an array for each of the {len(lengths)} episodes, with a number for each "
            "of its steps"
        )
    if not all(np.isfinite(each).all() for each in found):
        raise UserError(f"the {entry.called} returned a number that is not finite")
    return found


def chances_of(name: str, examples: Sequence[Example], renderer: Renderer, logprobs: Logprobs) -> Array:
    """Return Π p over the target's tokens of each example, under the policy at the temperature of sampling.

    Equal examples are asked once; one that is longer than the context has chance 0.
    """
    pairs = [renderer.pair(name, example) for example in examples]
    fitting = [pair for pair in dict.fromkeys(pairs) if len(pair.prompt) + len(pair.target) <= renderer.context]
    rows = []
    for number, pair in enumerate(fitting):
        ids = np.array((*pair.prompt, *pair.target), dtype=np.int32)
        rows.append(Row(ids, (counted_term("policy", range(len(pair.prompt), len(ids))),), f"chance/{number}"))
    found = logprobs(rows) if rows else {}
    sums = [np.sum(found[row.origin], dtype=np.float64) for row in rows]
    known = {pair: float(np.exp(total)) for pair, total in zip(fitting, sums, strict=True)}
    return np.array([known.get(pair, 0.0) for pair in pairs])
