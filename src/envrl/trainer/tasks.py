"""The recipe's curriculum, with checks of its assignments before they are played."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from envrl.component import Component, plan_of
from envrl.config.schema import Config
from envrl.curriculum import Admits, Observes
from envrl.errors import UserError
from envrl.registry import find
from envrl.types import Assignment, Task, TrajectoryGroup

ROUNDS = 5
"""The most rounds that an update plays if the curriculum refuses groups and does not say how many."""


@dataclass(frozen=True, slots=True)
class Playing:
    """One episode to play: its group number, its assignment, and its number among the task's episodes."""

    group: int
    assignment: Assignment
    member: int


class Tasks(Component):
    """The recipe's curriculum over the tasks of the training split."""

    def __init__(self, tasks: Sequence[Task], config: Config) -> None:
        entry, settings = find("curriculum", config.curriculum.name), config.settings("curriculum")
        super().__init__(entry, lambda: entry.target(tasks, plan_of(config), **settings))
        self._tasks, self._most = tasks, config.env.max_steps
        self._known: set[Task] = set()
        self._length = plan_of(config).max_steps

    @property
    def refuses(self) -> bool:
        """True if the curriculum may refuse groups."""
        return isinstance(self.made, Admits)

    @property
    def rounds(self) -> int:
        """The most rounds that an update plays; `UserError` for a curriculum that says anything but a number from 1."""
        rounds = getattr(self.made, "rounds", ROUNDS) if self.refuses else 1
        if not isinstance(rounds, int) or rounds < 1:
            raise UserError(f"the {self.entry.called} has rounds = {rounds!r:.40}: it is a whole number from 1 on")
        return rounds

    def next(self, update: int, met: Counter[str]) -> list[Playing]:
        """Return the episodes of an update, group by group; `met` counts each task's episodes in it so far.

        Samples depend on task and member, so a task that is assigned again continues its member numbers. Raises
        `UserError` if the curriculum gives no assignment, or one that cannot be played.
        """
        assigned = self.do(lambda: list(self.made.next(update)))
        if not assigned:
            raise UserError(f"the {self.entry.called} gave no task for update {update}")
        playing = []
        for group, assignment in enumerate(assigned):
            self._check(assignment)
            first = met[assignment.task.id]
            met[assignment.task.id] += assignment.episodes
            members = range(first, first + assignment.episodes)
            playing += [Playing(group, assignment, member) for member in members]
        return playing

    def admitted(self, groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """Return the groups that the curriculum admits for learning."""
        curriculum = self.made
        if not isinstance(curriculum, Admits):
            return list(groups)
        return self.do(lambda: [group for group in groups if curriculum.admit(group)])

    def observe(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Pass the played groups to the curriculum."""
        curriculum = self.made
        if isinstance(curriculum, Observes):
            self.do(lambda: curriculum.observe(groups))

    def _check(self, assignment: object) -> None:
        what = f"the {self.entry.called} gave"
        if not isinstance(assignment, Assignment):
            raise UserError(f"{what} {assignment!r:.80}, which is no envrl.Assignment")
        if not isinstance(assignment.task, Task):
            raise UserError(
                f"{what} {assignment.task!r:.80} as the task of an assignment: it is one of the tasks given"
            )
        for name in ("episodes", "max_steps"):
            if not isinstance(number := getattr(assignment, name), Integral):
                raise UserError(f"{what} {name} = {number!r:.40} for '{assignment.task.id}': it is a whole number")
        if assignment.task not in self._known and assignment.task not in self._tasks:
            raise UserError(f"{what} the task '{assignment.task.id}', which is none of the training split's")
        self._known.add(assignment.task)
        if assignment.episodes < 1:
            raise UserError(f"{what} {assignment.episodes} episodes of '{assignment.task.id}': at least 1 is played")
        if not 0 <= assignment.max_steps <= self._most:
            raise UserError(
                f"{what} max_steps = {assignment.max_steps} for '{assignment.task.id}': it is from 0 (the recipe's) to "
                f"env.max_steps = {self._most}"
            )
        start = assignment.start
        if not (isinstance(start, (tuple, list)) and all(isinstance(command, str) for command in start)):
            raise UserError(f"{what} a start of '{assignment.task.id}' that is no tuple of commands")
        length = assignment.max_steps or self._length
        if len(start) >= length:
            raise UserError(
                f"{what} a start of {len(start)} commands for '{assignment.task.id}', whose episodes end "
                f"after {length} steps: the policy would have none"
            )
