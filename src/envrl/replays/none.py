"""No old groups."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.curriculum import Plan
from envrl.registry import register
from envrl.types import TrajectoryGroup


@register("replay", "none")
class NoReplay:
    """An update learns only from the groups it played."""

    def __init__(self, plan: Plan) -> None:
        pass

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> Sequence[TrajectoryGroup]:
        """Return the update's own groups."""
        return groups
