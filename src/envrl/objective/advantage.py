"""Step advantages from step rewards: one pure function per estimator, in float64, without torch.

Call `ESTIMATORS[name](rewards, observations, ...)`. The registered function of an estimator takes the concatenated
steps of all trajectories (`Steps`) and returns one number per step. Suffix `_N`: over all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from envrl.errors import UserError
from envrl.objective.checks import check_choice, check_range
from envrl.ranges import Fraction, NonNegative
from envrl.registry import Entry, View, blame, check_settings, register

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

EPSILON = 1e-6
"""Added to a standard deviation before dividing by it, as the published code does."""


@dataclass(frozen=True, slots=True)
class Steps:
    """All steps of one call, concatenated; steps `offsets[i]:offsets[i + 1]` belong to trajectory i."""

    rewards_N: Array
    penalties_N: Array
    observations_N: tuple[str, ...]
    groups_N: tuple[Hashable, ...]
    offsets: Indices

    def per_trajectory(self, values_N: Array) -> list[Array]:
        return np.split(values_N, self.offsets[1:-1]) if len(self.offsets) > 1 else []


@dataclass(frozen=True, slots=True)
class Estimator:
    """A registered advantage estimator; `knobs` are its settings with their defaults."""

    entry: Entry

    @property
    def knobs(self) -> dict[str, Any]:
        return {name: setting.default for name, setting in self.entry.settings.items()}

    def __call__(
        self,
        rewards: Sequence[ArrayLike],
        observations: Sequence[Sequence[str]],
        *,
        groups: Iterable[Hashable] | None = None,
        values: Sequence[ArrayLike] | None = None,
        strata: Sequence[Hashable] | None = None,
        penalties: Sequence[ArrayLike] | None = None,
        final_observations: Sequence[str] | None = None,
        **knobs: Any,
    ) -> list[Array]:
        """Return the advantage of every step: one float64 array per trajectory, in the shape of `rewards`.

        `rewards` holds one array of step rewards per trajectory, `observations` the text before each step, `groups` one
        id per trajectory (default: one group). `penalties` are subtracted from a step's own score and its own
        discounted return, not from those of its neighbours. `values`, `strata` and `final_observations` are accepted
        and ignored. Raises `UserError` for shapes that disagree, a reward that is not finite, or an unknown setting.
        """
        check_settings(f"the {self.entry.called}", knobs, self.knobs)
        steps = _lay_out(rewards, observations, groups, penalties)
        with blame(self.entry):
            advantages = self.entry.target(steps, **knobs)
        return steps.per_trajectory(self._checked(advantages, len(steps.rewards_N)))

    def _checked(self, advantages: Any, count: int) -> Array:
        """Return the function's result as float64; raise `UserError` if it is not one finite number per step."""
        try:
            advantages_N = np.asarray(advantages, dtype=np.float64)
        except (TypeError, ValueError):
            raise UserError(
                f"the {self.entry.called} must return an array of numbers, not {advantages!r:.80}"
            ) from None
        if advantages_N.shape != (count,):
            raise UserError(
                f"the {self.entry.called} must return one number a step, {count} in all, not an array of shape "
                f"{advantages_N.shape}"
            )
        if not np.isfinite(advantages_N).all():
            step = int(np.flatnonzero(~np.isfinite(advantages_N))[0])
            raise UserError(f"the {self.entry.called} returned {advantages_N[step]} for step {step} (counted from 0)")
        return advantages_N


ESTIMATORS = View("estimator", Estimator)
"""Estimators by name: the built-in ones and those that `envrl.register("estimator", name)` registered."""


@register("estimator", "grpo", compares=True)
def grpo(
    steps: Steps,
    *,
    baseline: Literal["trajectories", "steps"] = "trajectories",  # what counts once in the group's statistics
    std: bool = True,  # divide by the group's standard deviation
) -> Array:
    """Group-relative advantage A = (R_i − p_{i,t} − μ) / (σ + ε), with σ the sample standard deviation of the group.

    `baseline` says what counts once in μ and σ: a trajectory (DeepSeekMath, arXiv 2402.03300, section 4.1) or a step
    (the code of verl-agent). `std=False` omits the division (Dr.GRPO, arXiv 2503.20783). A pool of one member has μ = 0
    and σ = 1, which gives the raw return.
    """
    check_choice("grpo", "baseline", baseline, ("trajectories", "steps"))
    return _by_group(steps, baseline, lambda scores, pool: _normalise(scores, pool, std))


@register("estimator", "rloo", compares=True)
def rloo(
    steps: Steps,
    *,
    baseline: Literal["trajectories", "steps"] = "trajectories",  # what counts once in the group's mean
) -> Array:
    """Leave-one-out advantage A = n/(n−1) · (R_i − p_{i,t} − μ), which is R_i − mean of the others.

    n is the size of the pool: trajectories or steps, by `baseline`. A pool of one gives the raw return (RLOO, arXiv
    2402.14740).
    """
    check_choice("rloo", "baseline", baseline, ("trajectories", "steps"))
    return _by_group(steps, baseline, lambda scores, pool: _leave_one_out(len(pool)) * _normalise(scores, pool, False))


@register("estimator", "gigpo", compares=True)
def gigpo(
    steps: Steps,
    *,
    gamma: Fraction = 0.95,  # discount of step returns
    step_weight: NonNegative = 1.0,  # weight of the step advantage
    step_norm: Literal["mean_std", "mean"] = "mean_std",  # normalisation of step returns
    baseline: Literal["trajectories", "steps"] = "trajectories",  # of the episode part, as in grpo
    std: bool = True,  # the episode part is divided by the group's standard deviation
) -> Array:
    """Group-in-group advantage A = A_grpo + w · A_step (arXiv 2505.10978, equations 3 to 8).

    A_step is the discounted return from the step on, Σ_{k≥t} γ^{k−t} r_k, minus the step's own penalty, normalised over
    the steps of the group with the same observation text, including repeats within one trajectory; a step alone in its
    set gets 0. `step_norm="mean"` omits the division by σ in A_step, `std=False` in A_grpo.
    """
    check_choice("gigpo", "step_norm", step_norm, ("mean_std", "mean"))
    check_range("gigpo", "gamma", gamma, 0.0, 1.0)
    check_range("gigpo", "step_weight", step_weight, 0.0, inf)
    returns_N = discounted_returns(steps, gamma) - steps.penalties_N
    step_N = np.zeros_like(returns_N)
    for rows in _sets(zip(steps.groups_N, steps.observations_N, strict=True)):
        if len(rows) > 1:
            step_N[rows] = _normalise(returns_N[rows], returns_N[rows], step_norm == "mean_std")
    return grpo(steps, baseline=baseline, std=std) + step_weight * step_N


def discounted_returns(steps: Steps, gamma: float) -> Array:
    """Return G_t = r_t + γ G_{t+1} for every step, without penalties."""
    returns_N = steps.rewards_N.copy()
    for start, stop in zip(steps.offsets[:-1], steps.offsets[1:], strict=True):
        for t in range(stop - 2, start - 1, -1):
            returns_N[t] += gamma * returns_N[t + 1]
    return returns_N


def _by_group(steps: Steps, baseline: str, relative: Callable[[Array, Array], Array]) -> Array:
    """Apply `relative(scores, pool)` to every group: the scores of its steps, and those that enter its statistics."""
    lengths = np.diff(steps.offsets)
    totals = np.array([rewards.sum() for rewards in steps.per_trajectory(steps.rewards_N)])
    scores_N = np.repeat(totals, lengths) - steps.penalties_N
    # With penalties the steps of one trajectory differ in score; the published code takes the score of the first step
    # for the trajectory, so the baseline includes the penalty of the first step only.
    is_first_N = np.zeros(len(scores_N), dtype=bool)
    is_first_N[steps.offsets[:-1][lengths > 0]] = True
    advantages_N = np.zeros_like(scores_N)
    for rows in _sets(steps.groups_N):
        pool = rows if baseline == "steps" else rows[is_first_N[rows]]
        advantages_N[rows] = relative(scores_N[rows], scores_N[pool])
    return advantages_N


def _normalise(scores: Array, pool: Array, std: bool) -> Array:
    """Return (scores − μ) / (σ + ε) with the statistics of the pool; a pool of one has μ = 0 and σ = 1.

    For a pool of equal values, μ is exactly that value and σ exactly 0: the rounded mean of [0.1] * 3 is not 0.1, and
    the remainder would be divided by ε. With `std` the result is then 0 everywhere, even for a penalised step outside
    the pool, which would otherwise get −p/ε.
    """
    if len(pool) == 1:
        return scores / (1.0 + EPSILON) if std else scores.copy()
    if pool.max() == pool.min():
        return np.zeros_like(scores) if std else scores - pool[0]
    centred = scores - pool.mean()
    return centred / (pool.std(ddof=1) + EPSILON) if std else centred


def _leave_one_out(count: int) -> float:
    return count / (count - 1) if count > 1 else 1.0


def _sets(keys: Iterable[Hashable]) -> list[Indices]:
    """Return the indices of each distinct key, in order of first appearance."""
    sets: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        sets.setdefault(key, []).append(index)
    return [np.array(indices, dtype=np.int64) for indices in sets.values()]


def _lay_out(
    rewards: Sequence[ArrayLike],
    observations: Sequence[Sequence[str]],
    groups: Iterable[Hashable] | None,
    penalties: Sequence[ArrayLike] | None,
) -> Steps:
    arrays = [np.asarray(r, dtype=np.float64) for r in rewards]
    if any(a.ndim != 1 for a in arrays):
        raise UserError("rewards must be one flat array of step rewards a trajectory")
    lengths = [len(a) for a in arrays]
    if penalties is None:
        penalties = [np.zeros(n) for n in lengths]
    penalty_arrays = [np.asarray(p, dtype=np.float64) for p in penalties]
    _check_lengths("observations", [len(o) for o in observations], lengths)
    _check_lengths("penalties", [p.size for p in penalty_arrays], lengths)
    ids = [0] * len(arrays) if groups is None else list(groups)
    if len(ids) != len(arrays):
        raise UserError(f"groups must hold an id a trajectory: {len(ids)} ids for {len(arrays)} trajectories")
    for index, (reward, penalty) in enumerate(zip(arrays, penalty_arrays, strict=True)):
        if not (np.isfinite(reward).all() and np.isfinite(penalty).all()):
            raise UserError(f"trajectory {index} (counted from 0) has a reward or penalty that is not a finite number")
    return Steps(
        rewards_N=np.concatenate([np.zeros(0), *arrays]),
        penalties_N=np.concatenate([np.zeros(0), *(p.reshape(-1) for p in penalty_arrays)]),
        observations_N=tuple(str(text) for trajectory in observations for text in trajectory),
        groups_N=tuple(group for group, length in zip(ids, lengths, strict=True) for _ in range(length)),
        offsets=np.cumsum([0, *lengths]),
    )


def _check_lengths(name: str, found: list[int], expected: list[int]) -> None:
    if len(found) != len(expected):
        raise UserError(f"{name} must have the shape of rewards: {len(found)} trajectories, not {len(expected)}")
    for index, (has, needs) in enumerate(zip(found, expected, strict=True)):
        if has != needs:
            raise UserError(
                f"{name} must have the shape of rewards: trajectory {index} (counted from 0) has {has} entries for "
                f"{needs} rewards"
            )
