"""Tasks where success changes most: sampling by learning progress (arXiv 1707.00183, 2106.14876)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from envrl.curriculum import Plan, generator, success_rate
from envrl.errors import UserError
from envrl.ranges import Fraction, Rate
from envrl.registry import register
from envrl.types import Assignment, Task, TrajectoryGroup


@register("curriculum", "progress")
class Progress:
    """Draw each task of an update from arm k (a kind of task, or a task) with probability

        P(k) = floor / K + (1 − floor) · |fast_k − slow_k| / Σ |fast − slow|

    fast and slow are moving averages of the success rate of arm k over the updates that played it; a falling rate
    counts as much as a rising one. While no arm has any progress, all are equally likely. Raises `UserError` where
    there is one arm alone.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        plan: Plan,
        *,
        by: Literal["kind", "task"] = "kind",  # whose progress is followed: of kinds of tasks | of single tasks
        fast: Rate = 0.3,  # step of the fast average
        slow: Rate = 0.1,  # step of the slow one
        floor: Fraction = 0.3,  # share of the draws that is spread over all
    ) -> None:
        self._plan, self._by, self._fast, self._slow, self._floor = plan, by, fast, slow, floor
        self._arms: dict[str, list[Task]] = defaultdict(list)
        for task in tasks:
            self._arms[self._arm(task)].append(task)
        if len(self._arms) < 2:
            raise UserError(
                f"curriculum.progress.by = '{by}' finds one {by} alone in this split, so there is nothing to choose "
                f"from: take another split{', or by = ' + repr('task') if by == 'kind' and len(tasks) > 1 else ''}"
            )
        self._rates: dict[str, tuple[float, float]] = {}

    def next(self, update: int) -> list[Assignment]:
        """Return the tasks of an update, without repeats as long as an arm has others."""
        random, names, P_K = generator(self._plan.seed, "progress", update), list(self._arms), self._probabilities()
        drawn: dict[str, list[Task]] = {}
        tasks = []
        for number in random.choice(len(names), self._plan.tasks, p=P_K):
            of = self._arms[names[number]]
            if not (left := drawn.setdefault(names[number], [])):
                left += [of[place] for place in random.permutation(len(of))]
            tasks.append(left.pop())
        return [Assignment(task, self._plan.group_size) for task in tasks]

    def observe(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Move the averages of the arms that were played."""
        rates: dict[str, list[float]] = defaultdict(list)
        for group in groups:
            rates[self._arm(group.task)].append(success_rate(group))
        for name, played in rates.items():
            rate = sum(played) / len(played)
            fast, slow = self._rates.get(name, (rate, rate))
            self._rates[name] = (fast + self._fast * (rate - fast), slow + self._slow * (rate - slow))

    def figures(self) -> dict[str, float]:
        """Return the sum of all progress, and how many arms the draws are spread over (e to their entropy)."""
        P_K = self._probabilities()
        spread = np.exp(-np.sum(P_K * np.log(np.maximum(P_K, 1e-300))))
        return {"progress": float(self._progress().sum()), "arms": float(spread)}

    def state(self) -> Any:
        return {name: list(pair) for name, pair in self._rates.items()}

    def load(self, state: Any) -> None:
        self._rates = {name: (fast, slow) for name, (fast, slow) in state.items()}

    def _arm(self, task: Task) -> str:
        return task.kind if self._by == "kind" else task.id

    def _progress(self) -> NDArray[np.float64]:
        pairs = [self._rates.get(name, (0.0, 0.0)) for name in self._arms]
        return np.array([abs(fast - slow) for fast, slow in pairs])

    def _probabilities(self) -> NDArray[np.float64]:
        progress_K = self._progress()
        total, even = progress_K.sum(), 1.0 / len(progress_K)
        return (
            np.full(len(progress_K), even) if not total else self._floor * even + (1 - self._floor) * progress_K / total
        )
