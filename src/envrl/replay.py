"""Which old groups join an update's own: what a replay decides, and the one that is built in.

A replay is made with the `Plan` of the run. It may have `state()` and `load(state)`: JSON that may hold
`TrajectoryGroup`s anywhere, which survive a checkpoint exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from envrl.curriculum import Plan
from envrl.registry import register
from envrl.types import TrajectoryGroup


class Replay(Protocol):
    """Decides what an update learns from besides what it played."""

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> Sequence[TrajectoryGroup]:
        """Return the groups that the update learns from, given those that it played; it may keep some for later."""
        ...


@register("replay", "none")
class NoReplay:
    """An update learns from what it played, and from nothing else."""

    def __init__(self, plan: Plan) -> None:
        pass

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> Sequence[TrajectoryGroup]:
        """Return the update's own groups."""
        return groups
