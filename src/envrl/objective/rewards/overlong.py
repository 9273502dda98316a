"""DAPO's soft overlong punishment: what is nearly too long costs something, and ever more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from envrl.errors import UserError
from envrl.ranges import Positive
from envrl.registry import register
from envrl.types import Example, Trajectory, TrajectoryGroup, episodes_of


@register("reward", "overlong", title="overlong penalty")
def overlong(
    groups: Sequence[TrajectoryGroup],
    chances: Callable[[Sequence[Example]], NDArray[np.float64]],
    *,
    limit: Positive = 512,  # L_max, tokens; what is as long or longer costs 1
    buffer: Positive = 128,  # L_cache, tokens before the limit over which the cost grows from 0 to 1
    of: Literal["response", "episode"] = "response",  # each response, paid in its step | all together, at the end
) -> list[NDArray[np.float64]]:
    """Return − min(1, max(0, (n − (L_max − L_cache)) / L_cache)) for n sampled tokens (DAPO, arXiv 2503.14476, eq. 13).

    Raises `UserError` if the buffer is longer than the limit.

    >>> [penalty(n, 100, 20) for n in (80, 90, 100, 130)]
    [-0.0, -0.5, -1.0, -1.0]
    """
    if buffer > limit:
        raise UserError(f"reward.overlong.buffer = {buffer} must not be above reward.overlong.limit = {limit}")
    return [_of_episode(each, limit, buffer, of) for each in episodes_of(groups)]


def penalty(tokens: int, limit: int, buffer: int) -> float:
    """Return the reward of a length, from 0 down to −1."""
    return -min(1.0, max(0.0, (tokens - (limit - buffer)) / buffer))


def _of_episode(trajectory: Trajectory, limit: int, buffer: int, of: str) -> NDArray[np.float64]:
    lengths = [len(step.action.token_ids) for step in trajectory.transitions]
    if of == "response":
        return np.array([penalty(length, limit, buffer) for length in lengths])
    paid_S = np.zeros(len(lengths))
    paid_S[-1:] = penalty(sum(lengths), limit, buffer)
    return paid_S
