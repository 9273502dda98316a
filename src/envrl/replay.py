"""Replays: which old groups an update learns from beside its own.

A replay is made with the `Plan` of the run. It may have `state()` and `load(state)`, for JSON that may hold
`TrajectoryGroup`s anywhere; they survive a checkpoint exactly. `replays/` holds those that ship.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from envrl.types import TrajectoryGroup


class Replay(Protocol):
    """Decides which groups an update learns from."""

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> Sequence[TrajectoryGroup]:
        """Return the groups that the update learns from, given the groups it played; it may store some for later."""
        ...
