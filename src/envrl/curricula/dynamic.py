"""DAPO's dynamic sampling: groups without signal are not learned from, and others are played instead."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from envrl.curriculum import Plan, tasks_from
from envrl.ranges import Positive, Rate
from envrl.registry import register
from envrl.types import Assignment, Task, TrajectoryGroup


@register("curriculum", "dynamic")
class Dynamic:
    """Play until the update has as many groups with different returns as it has tasks, for `rounds` rounds at most.

    The tasks come in the order of `shuffle`, each round going on where the last one ended. A further round plays
    missing / `expected` tasks, at most as many as the first. Groups beyond those wanted are left out. Source: DAPO,
    arXiv 2503.14476, section 3.2 (there for a success rate of 0 or 1).
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        plan: Plan,
        *,
        rounds: Positive = 10,  # the most that an update plays; then it learns from what it has
        expected: Rate = 0.5,  # share of groups with signal that a further round reckons with
    ) -> None:
        self._tasks, self._plan, self.rounds, self._expected = tasks, plan, rounds, expected
        self._place = self._update = 0
        self._round = self._played = self._admitted = 0

    def next(self, update: int) -> list[Assignment]:
        """Return the next round's assignments, a function of the seed and of how many tasks were drawn before."""
        if update != self._update:
            self._update, self._round, self._played, self._admitted = update, 0, 0, 0
        wanted = self._plan.tasks
        missing = max(1, wanted - self._admitted)
        count = min(wanted, ceil(missing / self._expected)) if self._round else wanted
        drawn = tasks_from(self._tasks, self._plan.seed, self._place, count)
        self._place, self._round = self._place + count, self._round + 1
        return [Assignment(task, self._plan.group_size) for task in drawn]

    def admit(self, group: TrajectoryGroup) -> bool:
        """Return whether the episodes of a group have different returns."""
        self._played += 1
        self._admitted += group.differs
        return group.differs

    def figures(self) -> dict[str, float]:
        """Return the update's rounds, the groups it played, and how many of them had signal."""
        return {"rounds": self._round, "played": self._played, "admitted": self._admitted}

    def state(self) -> Any:
        return self._place

    def load(self, state: Any) -> None:
        self._place, self._update = int(state), 0
