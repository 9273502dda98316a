"""ARPO's task filter: only tasks that the policy wins sometimes (arXiv 2505.16282)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envrl.curriculum import Plan, draw_tasks
from envrl.errors import RunError
from envrl.ranges import Count, Positive
from envrl.registry import register
from envrl.types import Assignment, Task, TrajectoryGroup


@register("curriculum", "solvable")
class Solvable:
    """Try a number of tasks once, in the first updates; from then on play only those with a win, in turn.

    Raises `RunError` if no task is left.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        plan: Plan,
        *,
        count: Positive = 128,  # tasks that are tried
        patience: Count = 10,  # a task that is lost altogether so often in a row is dropped; 0: never
    ) -> None:
        self._plan, self._patience = plan, patience
        self._tried = draw_tasks(tasks, plan.seed, 1, min(count, len(tasks)))
        self._place = 0
        """Tasks that were tried so far."""
        self._losses: dict[str, int] = {}
        """The tasks that stay, with the number of times in a row that they were lost altogether."""
        self._dropped = 0

    def next(self, update: int) -> list[Assignment]:
        """Return the next tasks to try, or tasks that stay."""
        plan = self._plan
        if self._place < len(self._tried):
            drawn = self._tried[self._place : self._place + plan.tasks]
            self._place += len(drawn)
        elif self._losses:
            drawn = draw_tasks([t for t in self._tried if t.id in self._losses], plan.seed, update, plan.tasks)
        else:
            raise RunError(
                f"none of the {len(self._tried)} tasks that the curriculum 'solvable' tried is left, since the policy "
                f"won none of {plan.group_size} episodes: begin with a longer warm start, or try more tasks "
                "(curriculum.solvable.count)"
            )
        return [Assignment(task, plan.group_size) for task in drawn]

    def observe(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Keep the tasks with a win, and drop those that were lost too often."""
        for group in groups:
            name = group.task.id
            if any(episode.success for episode in group.trajectories):
                self._losses[name] = 0
            elif name in self._losses:
                self._losses[name] += 1
                if self._losses[name] == self._patience:
                    del self._losses[name]
                    self._dropped += 1

    def figures(self) -> dict[str, float]:
        """Return the number of tasks that were tried, that stay, and that were dropped later."""
        return {"tried": self._place, "kept": len(self._losses), "dropped": self._dropped}

    def state(self) -> Any:
        return {"place": self._place, "losses": self._losses, "dropped": self._dropped}

    def load(self, state: Any) -> None:
        self._place, self._losses, self._dropped = state["place"], state["losses"], state["dropped"]
