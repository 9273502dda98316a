"""Turn the episodes of one update into its rows: advantages, policy rows, and the rows of auxiliary objectives."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envrl.batches.auxiliary import Predict, make_rows, scheduled_weights, weights_of
from envrl.batches.divergence import Reference, less_divergence
from envrl.batches.examples import AuxiliaryRows
from envrl.batches.retried import shaped, without_help
from envrl.batches.rewards import Logprobs, with_rewards
from envrl.batches.selection import Memory
from envrl.batches.teaching import Scores, taught
from envrl.batches.values import Values, value_terms, values_of_steps
from envrl.config.schema import Config
from envrl.objective.advantage import ESTIMATORS, VALUE
from envrl.rendering.renderer import Renderer
from envrl.samples.rows import learns, policy_rows
from envrl.types import Row, Trajectory, TrajectoryGroup, Transition, episodes_of

_VALID: dict[str, Callable[[Transition], bool]] = {
    "command": lambda step: step.admissible and bool(step.action.text),
    "form": lambda step: step.action.well_formed,
}


@dataclass(frozen=True, slots=True)
class Asks:
    """Whom the rows of an update ask for what the recipe needs: the engine, the policy, and earlier updates."""

    values: Values | None = None
    """Those of a head, for an estimator that reads them; None: those of a new head."""
    logprobs: Logprobs | None = None
    """Of tokens, for a reward beside the world's."""
    reference: Reference | None = None
    """Log-probs of the model that RL started from, for a KL in the reward; None: it is left out."""
    predict: Predict | None = None
    """Texts of the policy, for an objective whose targets it writes."""
    teachers: Scores | None = None
    """Log-probs of the recipe's teachers; None: they teach nothing."""
    memory: Memory = field(default_factory=Memory)
    """What the choice of auxiliary rows knows of earlier updates; it learns this one."""


@dataclass(frozen=True, slots=True)
class UpdateBatch:
    """The rows of one update, and figures to log."""

    rows: list[Row]
    weights: dict[str, float]
    """The weight λ of each auxiliary objective, regularizer and teacher."""
    figures: dict[str, float]


def step_advantages(groups: Sequence[TrajectoryGroup], config: Config, **settings: Any) -> list[NDArray[np.float64]]:
    """Return the step advantages under the recipe's estimator, one array per episode, group by group.

    `settings` take the place of the recipe's own settings of the estimator. One that reads values gets those of a new
    head, which are 0.
    """
    return _credit(groups, config, None, **settings)[0]


def _credit(
    groups: Sequence[TrajectoryGroup], config: Config, values: Values | None, **settings: Any
) -> tuple[list[NDArray[np.float64]], dict[str, list[NDArray[np.float64]]]]:
    """Return the advantages of each episode's steps, and what each head is to learn, by its name."""
    estimator = ESTIMATORS[config.objective.estimator]
    trajectories = episodes_of(groups)
    penalty = config.rollout.invalid_penalty
    is_valid = _VALID[config.rollout.invalid]
    valid = [[is_valid(step) for step in t.transitions] for t in trajectories]
    knobs = config.settings("estimator") | settings
    levels = estimator.levels(knobs)
    read = {name: values_of_steps(trajectories, name, level, values) for name, level in levels.items()}
    return estimator.credit(
        [[step.reward for step in t.transitions] for t in trajectories],
        [[step.observation.text for step in t.transitions] for t in trajectories],
        groups=[number for number, group in enumerate(groups) for _ in group.trajectories],
        penalties=[[0.0 if one else penalty for one in each] for each in valid] if penalty else None,
        commands=[[step.action.text for step in t.transitions] for t in trajectories],
        final_observations=[t.transitions[-1].next_observation.text if t.transitions else "" for t in trajectories],
        values=read.pop(VALUE, None),
        heads=read,
        valid=valid,
        switches=[[step.action.switches for step in t.transitions] for t in trajectories],
        **knobs,
    )


def _given_rows(groups: Sequence[TrajectoryGroup], config: Config) -> list[Row]:
    """Return the rows of groups whose advantages are given."""
    return [
        row
        for group in groups
        for trajectory, advantage in zip(group.trajectories, group.advantages_G, strict=True)
        for row in policy_rows(
            trajectory,
            np.full(len(trajectory.transitions), advantage),
            config.objective.aggregation,
            stale=True,
            component="replay",
            weight=group.weight,
            constant=config.row_tokens,
        )
    ]


def build_batch(
    groups: Sequence[TrajectoryGroup],
    config: Config,
    renderer: Renderer,
    update: int,
    asks: Asks | None = None,
) -> UpdateBatch:
    """Return the rows of an update; (seed, update) seed the choice of auxiliary rows.

    Groups with given advantages have rows of the component `replay`: neither estimator nor auxiliary objectives see
    them.
    """
    asks = asks or Asks()
    auxiliaries = config.auxiliaries()
    weights = weights_of(auxiliaries, update, config.train.updates)
    active = [each for each in auxiliaries if weights[each.name] > 0]
    for those in (config.regularizers(), config.teachers()):
        weights |= scheduled_weights(those, update, config.train.updates)
    judged, had_help = [group for group in groups if not group.advantages_G], set[int]()
    if config.retry.name != "none":  # what a memory tells stays: the policy that learns is told it, too
        judged, had_help = without_help(judged, renderer)
    auxiliary = make_rows(active, judged, renderer, (config.seed, update), asks.memory, update, asks.predict)
    if any(each.common.select == "novel" for each in auxiliaries):
        asks.memory.observe(judged)
    figures = {f"weight/{name}": weight for name, weight in weights.items()}
    if asks.teachers is not None:
        teachers = [each for each in config.teachers() if weights[each.name]]
        teaching = taught(judged, teachers, config, renderer, asks.teachers)
        auxiliary.add_terms(teaching.terms)
        figures |= teaching.figures
    paid, rewards = _paid(judged, config, renderer, update, asks.logprobs)
    charged, divergence = less_divergence(paid, config, asks.reference)
    advantages, returns = _credit(charged, config, asks.values)
    rows = _judged_rows(episodes_of(judged), advantages, returns, auxiliary, config, update, had_help)
    given = _given_rows([group for group in groups if group.advantages_G], config)
    knobs = config.settings("estimator")
    weights = {**weights, **{name: knobs.get(f"{name}_weight", 0.5) for name in returns}}
    figures["rows/policy"] = sum(map(learns, rows))
    if given:
        figures["rows/replay"] = len(given)
    if had_help:
        figures["rows/retry"] = sum(any(term.component == "retry" for term in row.terms) for row in rows)
    if config.objective.idle_rows == "count":
        figures["rows/idle"] = sum(any(term.component == "policy" for term in row.terms) for row in rows)
        figures["rows/idle"] -= figures["rows/policy"]
    staleness = [update - trajectory.policy_version for trajectory in episodes_of(groups)]
    if any(staleness):
        figures["staleness"] = float(np.mean(staleness))
    figures |= divergence | auxiliary.figures | rewards
    return UpdateBatch([*rows, *given, *auxiliary.rows], weights, figures)


def _judged_rows(
    trajectories: Sequence[Trajectory],
    advantages: Sequence[NDArray[np.float64]],
    returns: Mapping[str, Sequence[NDArray[np.float64]]],
    auxiliary: AuxiliaryRows,
    config: Config,
    update: int,
    had_help: Container[int] = (),
) -> list[Row]:
    """Return the policy's rows of these episodes, with the terms of heads and of objectives in its pass."""
    levels = ESTIMATORS[config.objective.estimator].levels(config.settings("estimator"))
    rows: list[Row] = []
    for number, (trajectory, advantages_S) in enumerate(zip(trajectories, advantages, strict=True)):
        in_pass = auxiliary.in_pass.get(number, {})
        for name, of_head in returns.items():
            learned = value_terms(trajectory, name, of_head[number], levels[name])
            in_pass = {place: [*in_pass.get(place, ()), *terms] for place, terms in learned.items()}
        made = policy_rows(
            trajectory,
            advantages_S,
            config.objective.aggregation,
            in_pass,
            idle=config.objective.idle_rows == "count",
            stale=trajectory.policy_version < update,
            constant=config.row_tokens,
            level=levels.get(VALUE, "token"),
        )
        rows += shaped(made, config.retry.gamma) if id(trajectory) in had_help else made
    return rows


def _paid(
    groups: Sequence[TrajectoryGroup], config: Config, renderer: Renderer, update: int, logprobs: Logprobs | None
) -> tuple[Sequence[TrajectoryGroup], dict[str, float]]:
    """Return the groups with the rewards that the recipe adds to the world's, and figures of these."""
    rewards = config.rewards()
    if not rewards:
        return groups, {}
    if logprobs is None:
        raise ValueError("a reward beside the world's is asked of an engine")
    return with_rewards(groups, rewards, update, config.train.updates, renderer, logprobs)
