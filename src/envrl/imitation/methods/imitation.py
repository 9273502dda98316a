"""Imitation of the demonstrations alone (behaviour cloning)."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.imitation.method import Gathered, Lesson, Player
from envrl.registry import register


@register("warm_start", "imitation")
class Imitation:
    """One round on the demonstrations; nothing is played."""

    def __init__(self, epochs: int) -> None:
        self.passes = (epochs,)

    def gather(self, round: int, demonstrations: Sequence[Lesson], player: Player) -> Gathered:
        return Gathered()

    def learns(self, round: int, demonstrations: Sequence[Lesson], gathered: Sequence[Lesson]) -> list[Lesson]:
        return list(demonstrations)
