"""New tasks like those that failed, neither too easy nor too hard: after WebRL (arXiv 2411.02337)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from envrl.curriculum import Plan, draw_tasks, generator, success_rate
from envrl.ranges import Fraction, Positive, Rate
from envrl.registry import register
from envrl.types import Assignment, Task, TrajectoryGroup


@register("curriculum", "failures")
class Failures:
    """Give a share of an update to tasks of the same kind as tasks that failed lately; the others come in turn.

    A task that was not won in all its episodes stands for one new task of its kind, if the average success rate of that
    kind is between `low` and `high`. Then it is forgotten, so no task is asked for without end.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        plan: Plan,
        *,
        share: Fraction = 0.5,  # of an update's tasks, that failures ask for
        low: Fraction = 0.05,  # kinds that are won more rarely are too hard
        high: Fraction = 0.75,  # kinds that are won more often are too easy
        size: Positive = 256,  # failures that are kept, the latest
        rate: Rate = 0.2,  # step of the moving average of a kind's success rate
    ) -> None:
        self._tasks, self._plan = tasks, plan
        self._count, self._low, self._high = int(share * plan.tasks), low, high
        self._size, self._rate = size, rate
        self._kinds: dict[str, list[Task]] = defaultdict(list)
        for task in tasks:
            self._kinds[task.kind].append(task)
        self._known = {task.id: task for task in tasks}
        self._failed: list[str] = []
        """The ids of failed tasks, the latest last."""
        self._rates: dict[str, float] = {}
        self._asked = 0

    def next(self, update: int) -> list[Assignment]:
        """Return tasks like the failed ones, and tasks in turn."""
        random = generator(self._plan.seed, "failures", update)
        fitting = [name for name in self._failed if self._fits(name)]
        chosen = [fitting[place] for place in random.permutation(len(fitting))[: self._count]]
        asked: list[Task] = []
        for name in chosen:
            self._failed.remove(name)
            asked.append(self._like(self._known[name], asked, random))
        self._asked = len(asked)
        in_turn = draw_tasks(self._tasks, self._plan.seed, update, self._plan.tasks)[len(asked) :]
        return [Assignment(task, self._plan.group_size) for task in (*asked, *in_turn)]

    def observe(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Note which tasks failed, and how often each kind is won."""
        for group in groups:
            won, kind, name = success_rate(group), group.task.kind, group.task.id
            self._rates[kind] = self._rates.get(kind, won) + self._rate * (won - self._rates.get(kind, won))
            self._failed = [other for other in self._failed if other != name] + [name] * (won < 1.0)
        self._failed = self._failed[-self._size :]

    def figures(self) -> dict[str, float]:
        """Return the number of tasks that failures asked for, of failures kept, and of those that ask for nothing."""
        idle = sum(not self._fits(name) for name in self._failed)
        return {"asked": self._asked, "failed": len(self._failed), "too_easy_or_hard": idle}

    def state(self) -> Any:
        return {"failed": self._failed, "rates": self._rates}

    def load(self, state: Any) -> None:
        self._failed, self._rates = state["failed"], state["rates"]

    def _fits(self, name: str) -> bool:
        return self._low <= self._rates[self._known[name].kind] <= self._high

    def _like(self, task: Task, taken: Sequence[Task], random: np.random.Generator) -> Task:
        """Return a task of the same kind: another one, and none that is taken, if there is one."""
        others = [other for other in self._kinds[task.kind] if other != task and other not in taken]
        return others[random.integers(len(others))] if others else task
