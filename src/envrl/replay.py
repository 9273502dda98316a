"""Replays: which old groups an update learns from beside its own.

A replay is made with the `Plan` of the run. It may have `state()` and `load(state)`, for JSON that may hold
`TrajectoryGroup`s anywhere; they survive a checkpoint exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from envrl.curriculum import Plan
from envrl.registry import register
from envrl.types import TrajectoryGroup


class Replay(Protocol):
    """Decides which groups an update learns from."""

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> Sequence[TrajectoryGroup]:
        """Return the groups that the update learns from, given the groups it played; it may store some for later."""
        ...


@register("replay", "none")
class NoReplay:
    """An update learns only from the groups it played."""

    def __init__(self, plan: Plan) -> None:
        pass

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> Sequence[TrajectoryGroup]:
        """Return the update's own groups."""
        return groups
