"""Curricula: which tasks an update plays, how many episodes of each, how long, and from which start.

A curriculum is made with the tasks of the training split and the `Plan`, and is asked before every update. Besides
`next` it may have `observe(groups)`, which receives the groups that were played; `admit(group)`, which says whether the
policy learns from a group; `state()` with `load(state)`, for state that survives a checkpoint (JSON); and `figures()`,
for the update's line in metrics.jsonl. `curricula/` holds those that ship.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from envrl.errors import UserError
from envrl.randomness import key_of
from envrl.types import Assignment, Task, TrajectoryGroup


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe's plan: the seed, tasks per update, episodes per task, steps per episode at most, number of updates."""

    seed: int
    tasks: int
    group_size: int
    max_steps: int
    updates: int


class Curriculum(Protocol):
    """Decides what an update plays."""

    def next(self, update: int) -> Sequence[Assignment]:
        """Return the assignments of an update (counted from 1).

        It is called again within the same update as long as `admit` refuses groups.
        """
        ...


@runtime_checkable
class Observes(Protocol):
    """A curriculum that sees the groups that were played."""

    def observe(self, groups: Sequence[TrajectoryGroup]) -> None: ...


@runtime_checkable
class Admits(Protocol):
    """A curriculum that can refuse groups; an attribute `rounds` says how many rounds an update plays at most."""

    def admit(self, group: TrajectoryGroup) -> bool: ...


@runtime_checkable
class HasState(Protocol):
    """Anything whose state survives a checkpoint."""

    def state(self) -> Any: ...
    def load(self, state: Any) -> None: ...


@runtime_checkable
class HasFigures(Protocol):
    """Anything with figures for the log line of an update."""

    def figures(self) -> Mapping[str, float]: ...


def draw_tasks(tasks: Sequence[Task], seed: int, update: int, count: int) -> list[Task]:
    """Return the tasks of an update (counted from 1): the next `count` of an endless order, reshuffled every pass."""
    return tasks_from(tasks, seed, (update - 1) * count, count)


def tasks_from(tasks: Sequence[Task], seed: int, first: int, count: int) -> list[Task]:
    """Return the tasks at the places `first` … `first + count - 1` of that endless order."""
    drawn = []
    for place in range(first, first + count):
        epoch, index = divmod(place, len(tasks))
        drawn.append(tasks[_order(len(tasks), seed, epoch)[index]])
    return drawn


def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return generator(seed, "tasks", epoch).permutation(count)


def figures_of(called: str, made: object) -> dict[str, float]:
    """Return the figures of a curriculum or replay, if it has any; raise `UserError` if one is no finite number."""
    figures = dict(made.figures()) if isinstance(made, HasFigures) else {}
    for name, value in figures.items():
        if not isinstance(value, Real) or not isfinite(value):
            raise UserError(f"the {called} has the figure '{name}' = {value!r:.40}, which is no number")
    return {name: float(value) for name, value in figures.items()}


def success_rate(group: TrajectoryGroup) -> float:
    """Return the share of a group's episodes that were won."""
    return sum(episode.success for episode in group.trajectories) / max(1, len(group.trajectories))


def generator(*key: int | str) -> np.random.Generator:
    """Return a generator of random numbers that is a function of its key."""
    return np.random.Generator(np.random.PCG64(key_of(*key)))
