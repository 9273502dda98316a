"""Aggregates of runs over seeds, and what they vary by: Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice" (NeurIPS 2021, arXiv 2108.13264).

`scores_RT` are the scores of R runs (seeds) on T tasks; here a task is a split of games.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import integrate, stats

Array = np.ndarray
Statistic = Callable[[Array], Array]
"""From scores (…, R, T) to figures (…)."""
RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A figure with its 95 % interval; none where there is one run."""

    value: float
    low: float | None = None
    high: float | None = None


def mean(scores_RT: Array) -> Array:
    """Return the mean over runs and tasks."""
    return np.mean(scores_RT, axis=(-2, -1))


def interquartile_mean(scores_RT: Array) -> Array:
    """Return the mean of the middle half of all runs' scores on all tasks (IQM; Agarwal et al., section 4.3).

    Of n = R T scores the floor(n / 4) lowest and highest are left out.
    """
    flat = scores_RT.reshape(*scores_RT.shape[:-2], -1)
    return np.asarray(stats.trim_mean(flat, 0.25, axis=-1))


def resampled_runs(runs: int, strata: Sequence[int], resamples: int, rng: np.random.Generator) -> Array:
    """Return the indices (B, R, T) of runs drawn with replacement, for each stratum of tasks by itself."""
    draws = {stratum: rng.integers(0, runs, (resamples, runs)) for stratum in dict.fromkeys(strata)}
    return np.stack([draws[stratum] for stratum in strata], axis=-1)


def _resampled(scores_RT: Array, strata: Sequence[int] | None, resamples: int, rng: np.random.Generator) -> Array:
    runs, tasks = scores_RT.shape
    chosen = resampled_runs(runs, range(tasks) if strata is None else strata, resamples, rng)
    return np.take_along_axis(scores_RT[None], chosen, axis=1)


def stratified_bootstrap(
    scores_RT: Array,
    statistic: Statistic,
    strata: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return a statistic with its 95 % percentile interval by the stratified bootstrap over runs.

    In each resample every stratum has as many runs as before, drawn with replacement from its own (Agarwal et al.,
    section 4.1). `strata` numbers that of each task; without it each task is one, as where other runs played each.
    Tasks that the same runs played are one stratum: their scores are not independent. Without an interval for one run,
    which says nothing of how runs differ.
    """
    value = float(statistic(scores_RT))
    if len(scores_RT) < 2:
        return Estimate(value)
    drawn = _resampled(scores_RT, strata, resamples, np.random.default_rng(seed))
    return Estimate(value, *percentiles(statistic(drawn)))


def percentiles(values: Array) -> tuple[float, float]:
    """Return the 2.5th and the 97.5th percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def probability_of_improvement(ours_RT: Array, theirs_RT: Array) -> Array:
    """Return the probability that a run of ours scores above one of theirs on a task, ties as half, mean over tasks.

    P = 1/T Σ_t 1/(R R') Σ_i Σ_j [x_it > y_jt] + ½ [x_it = y_jt] (Agarwal et al., section 4.3; the statistic of Mann and
    Whitney over its largest value).
    """
    x, y = ours_RT[..., :, None, :], theirs_RT[..., None, :, :]
    return np.mean((x > y) + 0.5 * (x == y), axis=(-3, -2, -1))


def improvement_interval(
    ours_RT: Array,
    theirs_RT: Array,
    strata: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return `probability_of_improvement` with its 95 % interval by the stratified bootstrap of both sides."""
    value = float(probability_of_improvement(ours_RT, theirs_RT))
    if min(len(ours_RT), len(theirs_RT)) < 2:
        return Estimate(value)
    rng = np.random.default_rng(seed)
    ours, theirs = (_resampled(scores, strata, resamples, rng) for scores in (ours_RT, theirs_RT))
    return Estimate(value, *percentiles(probability_of_improvement(ours, theirs)))


def performance_profile(scores_RT: Array, levels: Sequence[float]) -> Array:
    """Return for each level the share of runs and tasks that score above it (Agarwal et al., section 4.2)."""
    return np.mean(scores_RT[..., None] > np.asarray(levels), axis=(-3, -2))


def profile_band(
    scores_RT: Array,
    levels: Sequence[float],
    strata: Sequence[int] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Array, Array] | None:
    """Return the 95 % band of `performance_profile`, level by level, by the stratified bootstrap; None for one run."""
    if len(scores_RT) < 2:
        return None
    drawn = performance_profile(_resampled(scores_RT, strata, resamples, np.random.default_rng(seed)), levels)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return low, high


def area_under_curve(points: Sequence[tuple[float, float]]) -> float:
    """Return the area under a learning curve over its width, by trapezoids: the mean score on the way.

    ∫ y dx / (x_last - x_first); the score itself where there is one point.
    """
    x, y = np.asarray(points, dtype=float).T
    return float(integrate.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


def first_reaching(points: Sequence[tuple[float, float]], level: float) -> float | None:
    """Return the x of the first point whose y is at least the level; None where there is none."""
    return next((x for x, y in points if y >= level), None)
