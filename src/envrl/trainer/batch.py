"""From one update's episodes to its rows: advantages, policy rows, and what the auxiliary objectives make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envrl.config.schema import Config
from envrl.errors import RunError
from envrl.objective.advantage import ESTIMATORS
from envrl.randomness import key_of
from envrl.rollout.wording import Wording
from envrl.samples.rows import policy_rows
from envrl.trainer.auxiliary import make_rows, weights_of
from envrl.types import Row, StopReason, Task, Trajectory, TrajectoryGroup, Transition, episodes_of

_VALID: dict[str, Callable[[Transition], bool]] = {
    "command": lambda step: step.admissible and bool(step.action.text),
    "form": lambda step: step.action.well_formed,
}


@dataclass(frozen=True, slots=True)
class UpdateBatch:
    """The rows of one update and what is to be logged of how they came about."""

    rows: list[Row]
    weights: dict[str, float]
    """λ of the auxiliary objectives."""
    figures: dict[str, float]


def draw_tasks(tasks: Sequence[Task], seed: int, update: int, count: int) -> list[Task]:
    """Return the tasks of an update (counted from 1): consecutive ones of an endless order, reshuffled every pass."""
    first = (update - 1) * count
    drawn = []
    for place in range(first, first + count):
        epoch, index = divmod(place, len(tasks))
        drawn.append(tasks[_order(len(tasks), seed, epoch)[index]])
    return drawn


def draw_episodes(tasks: Sequence[Task], seed: int, update: int, count: int, size: int) -> list[tuple[Task, int]]:
    """Return (task, member) of an update's episodes, `size` of each task in a row.

    A task that is drawn again has further members: what is sampled is keyed by them, and would else be the same.
    """
    drawn, met = [], Counter[str]()
    for task in draw_tasks(tasks, seed, update, count):
        drawn += [(task, met[task.id] + member) for member in range(size)]
        met[task.id] += size
    return drawn


def grouped(trajectories: Sequence[Trajectory], size: int) -> list[TrajectoryGroup]:
    """Return episodes that lie group after group, `size` in a row, as their groups."""
    groups = [tuple(trajectories[start : start + size]) for start in range(0, len(trajectories), size)]
    return [TrajectoryGroup(group[0].task, group, group[0].policy_version) for group in groups]


def whole_groups(
    groups: Sequence[TrajectoryGroup], world: str = "", set_aside: Mapping[str, str] | None = None
) -> list[TrajectoryGroup]:
    """Return the groups without an episode that was set aside; raises `RunError` if none is left.

    `set_aside` holds what the world did at the last attempt, by the task's id.
    """
    whole = [group for group in groups if all(e.stop_reason is not StopReason.SET_ASIDE for e in group.trajectories)]
    if not whole:
        task = groups[-1].task.id
        raise RunError(
            f"every task of an update was set aside, since the world '{world}' failed again and again in all of them; "
            f"in '{task}', {(set_aside or {}).get(task, 'as was said')}"
        )
    return whole


def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(key_of(seed, "tasks", epoch))).permutation(count)


def step_advantages(groups: Sequence[TrajectoryGroup], config: Config) -> list[NDArray[np.float64]]:
    """Return the advantage of every step under the recipe's estimator, an array an episode, group after group."""
    estimator = ESTIMATORS[config.objective.estimator]
    trajectories = episodes_of(groups)
    penalty = config.rollout.invalid_penalty
    valid = _VALID[config.rollout.invalid]
    penalties = [[0.0 if valid(s) else penalty for s in t.transitions] for t in trajectories] if penalty else None
    return estimator(
        [[step.reward for step in t.transitions] for t in trajectories],
        [[step.observation.text for step in t.transitions] for t in trajectories],
        groups=[number for number, group in enumerate(groups) for _ in group.trajectories],
        penalties=penalties,
        **config.settings("estimator"),
    )


def build_batch(groups: Sequence[TrajectoryGroup], config: Config, wording: Wording, update: int) -> UpdateBatch:
    """Return the rows that an update is made of; which auxiliary rows is a function of (seed, update)."""
    auxiliaries = config.auxiliaries()
    weights = weights_of(auxiliaries, update, config.train.updates)
    weighed = [each for each in auxiliaries if weights[each.name] > 0]
    made = make_rows(weighed, groups, wording, (config.seed, update))
    rows: list[Row] = []
    for number, (trajectory, advantages_S) in enumerate(
        zip(episodes_of(groups), step_advantages(groups, config), strict=True)
    ):
        rows += policy_rows(trajectory, advantages_S, config.objective.aggregation, made.in_pass.get(number))
    figures = {f"weight/{name}": weight for name, weight in weights.items()}
    figures["rows/policy"] = sum(any(term.component == "policy" for term in row.terms) for row in rows)
    return UpdateBatch([*rows, *made.rows], weights, figures | made.figures)
