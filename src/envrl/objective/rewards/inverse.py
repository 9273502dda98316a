"""Inverse dynamics as a verifiable reward: a step is paid by how surely its command can be told from what it did."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from envrl.objective.auxiliary import inverse as asked
from envrl.registry import register
from envrl.types import Example, TrajectoryGroup, episodes_of


@register("reward", "inverse", title="inverse reward", asks="inverse")
def inverse(
    groups: Sequence[TrajectoryGroup],
    chances: Callable[[Sequence[Example]], NDArray[np.float64]],
    *,
    choices: bool = False,  # the question lists the admissible commands, in an order that is drawn; the true one, too
    accepted: bool = True,  # a command that the world does not accept is paid nothing
) -> list[NDArray[np.float64]]:
    """Return P(aₜ | sₜ, sₜ₊₁) of every step, the expected reward of an answer that pays 1 where it is the true command.

    The question is that of the auxiliary objective `inverse`, which teaches the policy to answer it. A policy can seek
    steps that are easy to tell. Sources: RLIR, arXiv 2509.23958 (there of a world model); UI-Shift, arXiv 2505.12493.
    """
    examples = list(asked.inverse(groups, choices=choices))
    found = chances(examples)
    if accepted:
        found = found * [each.trajectory.transitions[each.step].admissible for each in examples]
    lengths = [len(trajectory.transitions) for trajectory in episodes_of(groups)]
    return np.split(found, np.cumsum(lengths)[:-1]) if lengths else []
