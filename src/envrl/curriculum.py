"""Which tasks an update plays, how often, how long, and from where: what a curriculum decides, and the one that is
built in.

A curriculum is made with the tasks of the training split and the `Plan`, and is asked before every update. Besides
`next` it may have `observe(groups)`, told what was played; `admit(group)`, whether the policy learns from a group; and
`state()` with `load(state)`, what survives a checkpoint (JSON).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from envrl.randomness import key_of
from envrl.registry import register
from envrl.types import Assignment, Task, TrajectoryGroup


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe says of an update: its seed, tasks an update, episodes of each, their longest length, updates."""

    seed: int
    tasks: int
    group_size: int
    max_steps: int
    updates: int


class Curriculum(Protocol):
    """Decides what is played."""

    def next(self, update: int) -> Sequence[Assignment]:
        """Return what an update (counted from 1) plays.

        It is asked again within an update as long as `admit` refuses groups.
        """
        ...


@runtime_checkable
class Observes(Protocol):
    """A curriculum that is told what was played."""

    def observe(self, groups: Sequence[TrajectoryGroup]) -> None: ...


@runtime_checkable
class Admits(Protocol):
    """A curriculum that refuses groups."""

    def admit(self, group: TrajectoryGroup) -> bool: ...


@runtime_checkable
class HasState(Protocol):
    """Anything whose state survives a checkpoint."""

    def state(self) -> Any: ...
    def load(self, state: Any) -> None: ...


@register("curriculum", "shuffle")
class Shuffle:
    """Every task in turn, in an order that is drawn anew for every pass over them."""

    def __init__(self, tasks: Sequence[Task], plan: Plan) -> None:
        self._tasks, self._plan = tasks, plan

    def next(self, update: int) -> list[Assignment]:
        """Return the update's tasks: consecutive ones of an endless order, a function of (seed, update)."""
        plan = self._plan
        drawn = draw_tasks(self._tasks, plan.seed, update, plan.tasks)
        return [Assignment(task, plan.group_size) for task in drawn]


def draw_tasks(tasks: Sequence[Task], seed: int, update: int, count: int) -> list[Task]:
    """Return the tasks of an update (counted from 1): consecutive ones of an endless order, reshuffled every pass."""
    first = (update - 1) * count
    drawn = []
    for place in range(first, first + count):
        epoch, index = divmod(place, len(tasks))
        drawn.append(tasks[_order(len(tasks), seed, epoch)[index]])
    return drawn


def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(key_of(seed, "tasks", epoch))).permutation(count)
