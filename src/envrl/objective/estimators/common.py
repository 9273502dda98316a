"""What several estimators are made of: discounted returns, groups, normalisation. Suffix `_N`: over all steps."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import numpy as np

from envrl.objective.advantage import Array, Indices, Steps

EPSILON = 1e-6
"""Added to a standard deviation before dividing by it, as the published code does."""


def discounted_returns(steps: Steps, gamma: float) -> Array:
    """Return G_t = r_t + γ G_{t+1} for every step, without penalties."""
    returns_N = steps.rewards_N.copy()
    for start, stop in zip(steps.offsets[:-1], steps.offsets[1:], strict=True):
        for t in range(stop - 2, start - 1, -1):
            returns_N[t] += gamma * returns_N[t + 1]
    return returns_N


def total_rewards(steps: Steps) -> Array:
    """Return each trajectory's return, the sum of its rewards."""
    return np.array([rewards.sum() for rewards in steps.per_trajectory(steps.rewards_N)])


def by_group(steps: Steps, baseline: str, relative: Callable[[Array, Array], Array]) -> Array:
    """Apply `relative(scores, pool)` to every group: the scores of its steps, and those that enter its statistics."""
    lengths = np.diff(steps.offsets)
    scores_N = np.repeat(total_rewards(steps), lengths) - steps.penalties_N
    # With penalties the steps of one trajectory differ in score; the published code takes the score of the first step
    # for the trajectory, so the baseline includes the penalty of the first step only.
    is_first_N = np.zeros(len(scores_N), dtype=bool)
    is_first_N[steps.offsets[:-1][lengths > 0]] = True
    advantages_N = np.zeros_like(scores_N)
    for rows in index_sets(steps.groups_N):
        pool = rows if baseline == "steps" else rows[is_first_N[rows]]
        advantages_N[rows] = relative(scores_N[rows], scores_N[pool])
    return advantages_N


def normalise(scores: Array, pool: Array, std: bool) -> Array:
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


def normalise_sets(values_N: Array, keys: Iterable[Hashable], std: bool) -> Array:
    """Normalise every step's value over the steps with the same key; a step alone in its set gets 0."""
    normal_N = np.zeros_like(values_N)
    for rows in index_sets(keys):
        if len(rows) > 1:
            normal_N[rows] = normalise(values_N[rows], values_N[rows], std)
    return normal_N


def index_sets(keys: Iterable[Hashable]) -> list[Indices]:
    """Return the indices of each distinct key, in order of first appearance."""
    sets: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        sets.setdefault(key, []).append(index)
    return [np.array(indices, dtype=np.int64) for indices in sets.values()]
