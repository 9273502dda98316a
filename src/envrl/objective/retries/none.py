"""No second attempts."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.objective.retries.attempt import Retry, Solve
from envrl.registry import register
from envrl.types import TrajectoryGroup


@register("retry", "none")
def none(groups: Sequence[TrajectoryGroup], solve: Solve) -> Sequence[Retry]:
    """Yield nothing."""
    return ()
