"""Episodes that begin in the middle of recorded ones: after SnapshotRL (arXiv 2403.00673) and ExIt (2509.04575)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from envrl.curriculum import Plan, draw_tasks, generator
from envrl.ranges import Fraction, Positive
from envrl.registry import register
from envrl.types import Assignment, Task, Trajectory, TrajectoryGroup


@register("curriculum", "restarts")
class Restarts:
    """Start a share of an update's groups after a part of a recorded episode; the others start at the beginning.

    One episode is kept of each group with different returns. One is drawn in proportion to the variance of its group's
    returns, then the number of its commands that are played again, from one to all but the last, and the group starts
    there. Such a group is recorded in its turn. The world must answer the same commands in the same way.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        plan: Plan,
        *,
        share: Fraction = 0.5,  # of an update's groups, that start in the middle of an episode
        won: bool = True,  # of episodes that were won; false: of any
        size: Positive = 256,  # episodes that are kept, the latest
    ) -> None:
        self._tasks, self._plan, self._won, self._size = tasks, plan, won, size
        self._count = int(share * plan.tasks)
        self._kept: list[dict[str, Any]] = []
        """Task, commands and score of each episode, the latest last."""
        self._observed = 0
        self._lengths: list[int] = []

    def next(self, update: int) -> list[Assignment]:
        """Return groups with a start, as far as episodes are kept, and groups without."""
        plan, random = self._plan, generator(self._plan.seed, "restarts", update)
        started = []
        if self._kept:
            scores = np.array([each["score"] for each in self._kept])
            for number in random.choice(len(self._kept), self._count, p=scores / scores.sum()):
                task, commands = Task(**self._kept[number]["task"]), self._kept[number]["commands"]
                length = int(random.integers(1, min(len(commands), plan.max_steps)))
                started.append(Assignment(task, plan.group_size, start=tuple(commands[:length])))
        self._lengths = [len(each.start) for each in started]
        drawn = draw_tasks(self._tasks, plan.seed, update, plan.tasks)[len(started) :]
        return [*started, *(Assignment(task, plan.group_size) for task in drawn)]

    def observe(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Keep an episode of every group whose returns differ."""
        for group in groups:
            self._observed += 1
            several = [commands for e in group.trajectories if e.success or not self._won if (commands := _commands(e))]
            if group.differs and several:
                drawn = generator(self._plan.seed, "restarts of", self._observed).integers(len(several))
                score = float(group.returns_G.var())
                self._kept.append({"task": asdict(group.task), "commands": several[drawn], "score": score})
        self._kept = self._kept[-self._size :]

    def figures(self) -> dict[str, float]:
        """Return the number of groups with a start, the mean length of these starts, and the episodes that are kept."""
        started = len(self._lengths)
        return {"started": started, "start_steps": sum(self._lengths) / max(1, started), "kept": len(self._kept)}

    def state(self) -> Any:
        return {"kept": self._kept, "observed": self._observed}

    def load(self, state: Any) -> None:
        self._kept, self._observed = state["kept"], state["observed"]


def _commands(trajectory: Trajectory) -> list[str]:
    """Return an episode's commands up to the first empty one, if there are two at least: one to play, one to leave."""
    commands = [step.action.text for step in trajectory.transitions]
    commands = commands[: commands.index("")] if "" in commands else commands
    return commands if len(commands) > 1 else []
