"""An update's episodes: what the recipe's curriculum assigns, looked at before anything is played."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from envrl.config.schema import Config
from envrl.curriculum import Admits, HasState, Observes, Plan
from envrl.errors import RunError, UserError
from envrl.registry import Entry, failed, find
from envrl.samples.store import from_json, to_json
from envrl.types import Assignment, Task, TrajectoryGroup

ROUNDS = 5
"""How often an update plays for a curriculum that refuses what was played."""


def check_state(entry: Entry, made: object) -> None:
    """Raise `UserError` where a thing gives its state and does not take it up again, or the reverse."""
    if hasattr(made, "state") != hasattr(made, "load"):
        have, lack = ("state()", "load(state)") if hasattr(made, "state") else ("load(state)", "state()")
        raise UserError(f"the {entry.called} has {have} and no {lack}: a resumed run needs both")


def saved(entry: Entry, state: object) -> Any:
    """Return a thing's state as plain JSON; raises `UserError` where it is something else."""
    try:
        return to_json(state)
    except RunError as error:
        raise UserError(f"the {entry.called} cannot be saved: {error}") from error


@dataclass(frozen=True, slots=True)
class Playing:
    """One episode to be played: the number of its group, what was assigned, and its member of the task's episodes."""

    group: int
    assignment: Assignment
    member: int


def plan_of(config: Config) -> Plan:
    """Return what a recipe says of its updates."""
    rollout = config.rollout
    most = rollout.max_steps or config.env.max_steps
    return Plan(config.seed, rollout.tasks, rollout.group_size, most, config.train.updates)


class Tasks:
    """The recipe's curriculum over the tasks of the training split."""

    def __init__(self, tasks: Sequence[Task], config: Config) -> None:
        self._entry = find("curriculum", config.curriculum.name)
        self._known, self._most = set(tasks), config.env.max_steps
        self._length = plan_of(config).max_steps
        settings = config.settings("curriculum")
        self._curriculum = self._do(lambda: self._entry.target(list(tasks), plan_of(config), **settings))
        check_state(self._entry, self._curriculum)

    @property
    def refuses(self) -> bool:
        """Whether the curriculum may refuse groups."""
        return isinstance(self._curriculum, Admits)

    def next(self, update: int, met: Counter[str]) -> list[Playing]:
        """Return the episodes of an update, group after group; `met` counts those of each task that it had before.

        What is sampled is keyed by the task and the member: a task that is drawn again has further members. Raises
        `UserError` where the curriculum gives nothing, or what cannot be played.
        """
        assigned = self._do(lambda: list(self._curriculum.next(update)))
        if not assigned:
            raise UserError(f"the {self._entry.called} gave no task for update {update}")
        playing = []
        for group, assignment in enumerate(assigned):
            self._check(assignment)
            first = met[assignment.task.id]
            met[assignment.task.id] += assignment.episodes
            members = range(first, first + assignment.episodes)
            playing += [Playing(group, assignment, member) for member in members]
        return playing

    def admitted(self, groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
        """Return the groups that the policy is to learn from."""
        curriculum = self._curriculum
        if not isinstance(curriculum, Admits):
            return list(groups)
        return self._do(lambda: [group for group in groups if curriculum.admit(group)])

    def observe(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Tell the curriculum what was played."""
        curriculum = self._curriculum
        if isinstance(curriculum, Observes):
            self._do(lambda: curriculum.observe(groups))

    def state(self) -> Any:
        """Return what survives a checkpoint, as plain JSON."""
        return saved(self._entry, self._do(self._curriculum.state)) if isinstance(self._curriculum, HasState) else None

    def load(self, state: Any) -> None:
        """Take up what a checkpoint holds."""
        if isinstance(self._curriculum, HasState):
            self._do(lambda: self._curriculum.load(from_json(state)))

    def _check(self, assignment: object) -> None:
        what = f"the {self._entry.called} gave"
        if not isinstance(assignment, Assignment):
            raise UserError(f"{what} {assignment!r:.80}, which is no envrl.Assignment")
        if assignment.task not in self._known:
            raise UserError(f"{what} the task '{assignment.task.id}', which is none of the training split's")
        if assignment.episodes < 1:
            raise UserError(f"{what} {assignment.episodes} episodes of '{assignment.task.id}': at least 1 is played")
        if not 0 <= assignment.max_steps <= self._most:
            raise UserError(
                f"{what} max_steps = {assignment.max_steps} for '{assignment.task.id}': it is from 0 (the recipe's) to "
                f"env.max_steps = {self._most}"
            )
        if isinstance(assignment.start, str) or not all(isinstance(command, str) for command in assignment.start):
            raise UserError(f"{what} a start of '{assignment.task.id}' that is no tuple of commands")
        length = assignment.max_steps or self._length
        if len(assignment.start) >= length:
            raise UserError(
                f"{what} a start of {len(assignment.start)} commands for '{assignment.task.id}', whose episodes end "
                f"after {length} steps: the policy would have none"
            )

    def _do(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # anybody's class may raise anything
            raise failed(self._entry, error) from error
