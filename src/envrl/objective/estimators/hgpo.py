"""HGPO: step returns compared among steps with the same last observations, for several lengths of history at once."""

from __future__ import annotations

from math import inf
from typing import Literal

import numpy as np

from envrl.objective.advantage import Array, Steps
from envrl.objective.checks import check_choice, check_range
from envrl.objective.estimators.common import EPSILON, discounted_returns, index_sets
from envrl.objective.estimators.grpo import grpo
from envrl.ranges import Count, Fraction, NonNegative
from envrl.registry import register


@register("estimator", "hgpo", title="HGPO", compares=True)
def hgpo(
    steps: Steps,
    *,
    gamma: Fraction = 0.95,  # discount of step returns
    history: Count = 2,  # earlier observations, at most, that two steps have to share
    alpha: NonNegative = 1.0,  # how much more a longer shared history weighs
    base: bool = False,  # GRPO's advantage (over steps) enters the mean with a weight of 1
    step_norm: Literal["mean_std", "mean"] = "mean_std",  # normalisation in a set of steps
) -> Array:
    """Hierarchical group advantage A = Σ_k w_k a_k / (Σ_k w_k + ε), w_k = (k + 1)^α (HGPO, arXiv 2602.22817).

    a_k, k = 1 … `history` + 1, is the discounted return from the step on minus the step's own penalty, normalised (by
    the *population* deviation) among the steps of the group whose last k observations are the same texts. A step has
    it if so many observations precede it in its episode and another step shares them. Sums run over the a_k that are
    not 0. `base` adds GRPO's advantage, with steps as its baseline, as k = 0.

    Both episodes win in two steps. The steps at "b" share one observation, not two: their returns are 4 and 2.

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> found = ESTIMATORS["hgpo"]([[0.0, 4.0], [0.0, 2.0]], [["a", "b"], ["c", "b"]], step_norm="mean")
    >>> [each.round(5).tolist() for each in found]
    [[0.0, 1.0], [0.0, -1.0]]
    """
    check_choice("hgpo", "step_norm", step_norm, ("mean_std", "mean"))
    for name, value, most in (("gamma", gamma, 1.0), ("history", history, inf), ("alpha", alpha, inf)):
        check_range("hgpo", name, value, 0.0, most)
    returns_N = discounted_returns(steps, gamma) - steps.penalties_N
    items = [(k, _among_same_history(steps, returns_N, k, step_norm)) for k in range(1, history + 2)]
    if base:
        items.append((0, grpo(steps, baseline="steps", std=step_norm == "mean_std")))
    weighted_N, weights_N = np.zeros_like(returns_N), np.zeros_like(returns_N)
    for k, advantages_N in items:
        weight_N = np.where(advantages_N != 0.0, (k + 1.0) ** alpha, 0.0)
        weighted_N += weight_N * advantages_N
        weights_N += weight_N
    return weighted_N / (weights_N + EPSILON)


def _among_same_history(steps: Steps, returns_N: Array, k: int, step_norm: str) -> Array:
    """Return a_k of every step; 0 where the step is alone, or fewer than k observations lead to it."""
    places = np.arange(len(returns_N)) - np.repeat(steps.offsets[:-1], np.diff(steps.offsets))
    having = np.flatnonzero(places >= k - 1)
    advantages_N = np.zeros_like(returns_N)
    keys = [(steps.groups_N[n], steps.observations_N[n - k + 1 : n + 1]) for n in having]
    for members in index_sets(keys):
        rows = having[members]
        values = returns_N[rows]
        if len(rows) == 1 or values.max() == values.min():
            continue
        centred = values - values.mean()
        # What rounding leaves of a value that is the mean would count as an advantage, with its whole weight.
        centred[np.abs(centred) <= 1e-12 * np.abs(values).max()] = 0.0
        advantages_N[rows] = centred / (values.std() + EPSILON) if step_norm == "mean_std" else centred
    return advantages_N
