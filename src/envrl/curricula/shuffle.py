"""Every task in turn."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.curriculum import Plan, draw_tasks
from envrl.registry import register
from envrl.types import Assignment, Task


@register("curriculum", "shuffle")
class Shuffle:
    """Plays every task in turn, in an order that is shuffled anew for every pass over the tasks."""

    def __init__(self, tasks: Sequence[Task], plan: Plan) -> None:
        self._tasks, self._plan = tasks, plan

    def next(self, update: int) -> list[Assignment]:
        """Return one assignment per task of the update, a function of (seed, update)."""
        plan = self._plan
        tasks = draw_tasks(self._tasks, plan.seed, update, plan.tasks)
        return [Assignment(task, plan.group_size) for task in tasks]
