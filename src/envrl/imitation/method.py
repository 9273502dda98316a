"""What a warm start learns from: lessons, and the methods that gather them in rounds.

A method is made with the epochs of the recipe. Its rounds follow each other: before a round `gather` may play, with the
policy as the round before left it, and `learns` says from which lessons the round learns. `methods/` holds those that
ship.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from envrl.config.schema import Config
from envrl.envs.protocol import TextEnv
from envrl.errors import UserError
from envrl.registry import blame, find
from envrl.samples.store import from_json, to_json
from envrl.types import Action, Assignment, Example, Observation, Segment, Task, Trajectory, TrajectoryGroup, Transition

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lesson:
    """An episode to learn from; `imitated[t]` says whether the command of step t, as it was played, is imitated."""

    trajectory: Trajectory
    imitated: tuple[bool, ...]
    labels: tuple[str, ...] = ()
    """The command to say at each step, where an expert was asked; it may be another than the one that was played."""
    branches: tuple[tuple[int, Segment], ...] = ()
    """Each step whose label, or its thought, was not said, and its prompt with both in tokens, once it is written."""
    thoughts: tuple[str, ...] = ()
    """What is thought before the label of each step; empty: nothing anywhere."""
    predicted: bool = False
    """True if the world's answer to the last step is to be predicted, in a row of its own (`experience`)."""


class Guide(Protocol):
    """Plays some of an episode's steps in place of the policy (`envrl.rollout.scheduler.Guide`)."""

    def __call__(self, past: Sequence[Transition], observation: Observation) -> str: ...


class GuideMaker(Protocol):
    """Makes the guide of an episode; called again if the episode has to be played again."""

    def __call__(self, task: Task, member: int) -> Guide: ...


class Player(Protocol):
    """Plays training episodes with the policy for a method, at the recipe's training temperature."""

    seed: int
    world: str

    def tasks(self, round: int, count: int) -> list[Task]:
        """Return the tasks of a round: the next `count` of the training tasks in an endless order, reshuffled."""
        ...

    def make_env(self) -> TextEnv:
        """Return a world of the recipe in this process."""
        ...

    def play(
        self, round: int, assignments: Sequence[Assignment], guide_of: GuideMaker | None = None
    ) -> list[Trajectory]:
        """Return the episodes of these assignments, those of a world that failed left out.

        Several processes share them out: each gets all episodes, and makes the guides of those that it plays itself.
        """
        ...

    def thoughts(self, examples: Sequence[Example]) -> list[str]:
        """Return what the policy writes to each question, to stand before the command of its step in a response.

        It is as long as `rollout.response_tokens` leaves room for, and empty where the prompt format has none.
        """
        ...

    def together(self, thing: T) -> list[T]:
        """Return what each process gives: what its guides have noted. All of them call this at the same point."""
        ...


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a method has found before a round: lessons, and figures for the log."""

    lessons: list[Lesson] = field(default_factory=list)
    figures: Mapping[str, float] = field(default_factory=dict)
    queries: int = 0
    """States that an expert was asked about."""


class Method(Protocol):
    """Decides what the rounds of a warm start learn from."""

    passes: tuple[int, ...]
    """The number of epochs of each round."""

    def gather(self, round: int, demonstrations: Sequence[Lesson], player: Player) -> Gathered:
        """Return new lessons before a round, counted from 0."""
        ...

    def learns(self, round: int, demonstrations: Sequence[Lesson], gathered: Sequence[Lesson]) -> list[Lesson]:
        """Return the lessons of a round; `gathered` are those of all rounds so far."""
        ...


def method_of(config: Config) -> Method:
    """Return the recipe's method; raise `UserError` if a user's cannot be made, or has no rounds."""
    entry = find("warm_start", config.warm_start.method)
    with blame(entry):
        method = entry.target(config.warm_start.epochs, **config.settings("warm_start"))
    passes = getattr(method, "passes", ())
    if not passes or not all(isinstance(epochs, int) and epochs > 0 for epochs in passes):
        raise UserError(f"the {entry.called} has passes = {passes!r:.60}: they are the epochs of each round, 1 or more")
    return method


def gathered_by(
    method: Method, config: Config, round: int, demonstrations: Sequence[Lesson], player: Player
) -> Gathered:
    """Return what a method gathers before a round; raise `UserError` if a user's fails, or gathers something else."""
    entry = find("warm_start", config.warm_start.method)
    with blame(entry):
        gathered = method.gather(round, demonstrations, player)
    if not isinstance(gathered, Gathered) or not all(isinstance(each, Lesson) for each in gathered.lessons):
        raise UserError(
            f"the {entry.called} gathered {gathered!r:.60}, and no envrl.imitation.method.Gathered of lessons"
        )
    return gathered


def bare(trajectory: Trajectory) -> Trajectory:
    """Return an episode without the tokens that it was sampled with, as a script would have played it."""
    steps = tuple(replace(step, action=Action(step.action.text)) for step in trajectory.transitions)
    return replace(trajectory, transitions=steps, segments=())


def lesson_to_json(lesson: Lesson) -> Any:
    """Return a lesson as JSON, without what `written` makes of it anew."""
    group = TrajectoryGroup(lesson.trajectory.task, (lesson.trajectory,))
    rest = {name: getattr(lesson, name) for name in ("imitated", "labels", "thoughts", "predicted")}
    return to_json({"group": group, **rest})


def lesson_from_json(state: Any) -> Lesson:
    """Return the lesson that `lesson_to_json` encoded."""
    found = from_json(state)
    (trajectory,) = found["group"].trajectories
    said = {name: tuple(found.get(name, ())) for name in ("imitated", "labels", "thoughts")}
    return Lesson(trajectory, **said, predicted=found["predicted"])
