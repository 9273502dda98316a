"""Turn the episodes of one update into its rows: advantages, policy rows, and the rows of auxiliary objectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envrl.batches.auxiliary import make_rows, weights_of
from envrl.config.schema import Config
from envrl.objective.advantage import ESTIMATORS
from envrl.rendering.renderer import Renderer
from envrl.samples.rows import learns, policy_rows
from envrl.types import Row, TrajectoryGroup, Transition, episodes_of

_VALID: dict[str, Callable[[Transition], bool]] = {
    "command": lambda step: step.admissible and bool(step.action.text),
    "form": lambda step: step.action.well_formed,
}


@dataclass(frozen=True, slots=True)
class UpdateBatch:
    """The rows of one update, and figures to log."""

    rows: list[Row]
    weights: dict[str, float]
    """The weight λ of each auxiliary objective."""
    figures: dict[str, float]


def step_advantages(groups: Sequence[TrajectoryGroup], config: Config, **settings: Any) -> list[NDArray[np.float64]]:
    """Return the step advantages under the recipe's estimator, one array per episode, group by group.

    `settings` take the place of the recipe's own settings of the estimator.
    """
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
        commands=[[step.action.text for step in t.transitions] for t in trajectories],
        final_observations=[t.transitions[-1].next_observation.text if t.transitions else "" for t in trajectories],
        **config.settings("estimator") | settings,
    )


def build_batch(groups: Sequence[TrajectoryGroup], config: Config, renderer: Renderer, update: int) -> UpdateBatch:
    """Return the rows of an update; (seed, update) seed the choice of auxiliary rows."""
    auxiliaries = config.auxiliaries()
    weights = weights_of(auxiliaries, update, config.train.updates)
    active = [each for each in auxiliaries if weights[each.name] > 0]
    auxiliary = make_rows(active, groups, renderer, (config.seed, update))
    rows: list[Row] = []
    for number, (trajectory, advantages_S) in enumerate(
        zip(episodes_of(groups), step_advantages(groups, config), strict=True)
    ):
        rows += policy_rows(
            trajectory,
            advantages_S,
            config.objective.aggregation,
            auxiliary.in_pass.get(number),
            idle=config.objective.idle_rows == "count",
            stale=trajectory.policy_version < update,
        )
    figures = {f"weight/{name}": weight for name, weight in weights.items()}
    figures["rows/policy"] = sum(map(learns, rows))
    if config.objective.idle_rows == "count":
        figures["rows/idle"] = sum(any(term.component == "policy" for term in row.terms) for row in rows)
        figures["rows/idle"] -= figures["rows/policy"]
    staleness = [update - trajectory.policy_version for trajectory in episodes_of(groups)]
    if any(staleness):
        figures["staleness"] = float(np.mean(staleness))
    return UpdateBatch([*rows, *auxiliary.rows], weights, figures | auxiliary.figures)
