"""Split a batch of episodes into smaller parts if memory runs out."""

from __future__ import annotations

from collections.abc import Callable

from envrl.errors import RunError
from envrl.models.out_of_memory import OutOfMemory, counted_memory, release_memory
from envrl.types import Trajectory


class BatchSplitter:
    """Plays episodes in parts that fit in memory; a lowered size stays for the rest of the process.

    The samples of an episode do not depend on the episodes beside it (`envrl.randomness`), so the split changes results
    by rounding only.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.say = say
        self.limit: int | None = None

    def play(self, count: int, play: Callable[[range], list[Trajectory]], at_once: int = 0) -> list[Trajectory]:
        """Return the trajectories of episodes 0 to `count` - 1; `play` plays a range of at most `at_once` (0: any).

        Raises `RunError` if a single episode does not fit in memory.
        """
        played: list[Trajectory] = []
        while len(played) < count:
            size = min(part for part in (count - len(played), at_once, self.limit) if part)
            part = self._try(play, range(len(played), len(played) + size))
            if part is not None:
                played += part
                continue
            release_memory()
            if size == 1:
                raise RunError(
                    "memory ran out while a single episode was played; the last checkpoint is kept: lower "
                    "rollout.response_tokens, rollout.history or env.max_steps, or take a smaller model"
                )
            self.limit = size // 2
            self.say(
                f"memory ran out while {size} episodes were played at once; they are played again, {self.limit} at a "
                "time, which stays (rollout.tasks and rollout.group_size say how many there are)"
            )
        return played

    @staticmethod
    def _try(play: Callable[[range], list[Trajectory]], part: range) -> list[Trajectory] | None:
        try:
            with counted_memory(len(part), 0):
                return play(part)
        except OutOfMemory:
            return None
