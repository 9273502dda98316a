"""No memory."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.curriculum import Plan
from envrl.memory import Experience, Query, Recalled
from envrl.registry import register


@register("memory", "none")
class NoMemory:
    """Nothing is kept, and no episode is told anything."""

    def __init__(self, plan: Plan) -> None:
        pass

    def recall(self, query: Query) -> Sequence[Recalled]:
        """Return nothing."""
        return ()

    def observe(self, experiences: Sequence[Experience], update: int) -> None:
        """Keep nothing."""
