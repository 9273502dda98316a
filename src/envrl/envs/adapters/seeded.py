"""Tasks that differ in nothing but a seed: their order, their ids, and splits that share no seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from envrl.errors import UserError
from envrl.types import Task

STRETCH = 1_000_000
"""Seeds that are set aside for each split."""
SPLITS = (("train", 20_000), ("valid", 500), ("test", 500))


@dataclass(frozen=True, slots=True)
class SeededTasks:
    """The splits of a world and their sizes; `kinds` take turns, so that each is as frequent as the next.

    Task n of split s has the seed `STRETCH · s + n` and the id `split/00000n`, behind it `-kind` where there are kinds.
    """

    world: str
    splits: tuple[tuple[str, int], ...] = SPLITS
    kinds: tuple[str, ...] = ()

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of a split; raises `UserError` for an unknown one."""
        names = [name for name, _ in self.splits]
        if split not in names:
            raise UserError(f"the world '{self.world}' has no split '{split}'; choose from {', '.join(names)}")
        return _listed(self, names.index(split))

    def find(self, task: Task) -> Task:
        """Return the task as it is listed, with seed and kind; raises `UserError` where there is none of that id."""
        listed = self.tasks(task.split)
        number = re.fullmatch(r"[^/]*/(\d{6,7})(?:-.*)?", task.id)
        if number is None or int(number[1]) >= len(listed) or listed[int(number[1])].id != task.id:
            raise UserError(
                f"the world '{self.world}' has no task '{task.id}' in the split '{task.split}'; "
                f"choose from '{listed[0].id}' to '{listed[-1].id}'"
            )
        return listed[int(number[1])]


@lru_cache(maxsize=32)
def _listed(tasks: SeededTasks, split_index: int) -> tuple[Task, ...]:
    split, size = tasks.splits[split_index]
    kinds = tasks.kinds or ("",)
    return tuple(
        Task(f"{split}/{number:06d}{kind and '-' + kind}", split, STRETCH * split_index + number, kind)
        for number in range(size)
        for kind in (kinds[number % len(kinds)],)
    )
