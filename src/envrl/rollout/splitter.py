"""How many episodes are played at once: as many as asked for, fewer where memory runs out."""

from __future__ import annotations

from collections.abc import Callable

from envrl.errors import RunError
from envrl.models.out_of_memory import OutOfMemory, counted_memory, release_memory
from envrl.types import Trajectory


class BatchSplitter:
    """Plays episodes in as large parts as memory holds; once lowered their size stays so for the rest of the process.

    What is drawn in an episode does not depend on those beside it (`envrl.randomness`), so neither do results,
    beyond rounding.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self.say = say
        self.limit: int | None = None

    def play(self, count: int, play: Callable[[range], list[Trajectory]], at_once: int = 0) -> list[Trajectory]:
        """Return the trajectories of episodes 0 to `count`; `play` plays a range, of at most `at_once` (0: any).

        Raises `RunError` where a single episode does not fit.
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
