"""Stratified GRPO: episodes compared with those of their group that went alike."""

from __future__ import annotations

import numpy as np

from envrl.objective.advantage import Array, Steps
from envrl.objective.checks import check_range
from envrl.objective.estimators.common import index_sets, normalise, total_rewards
from envrl.objective.estimators.grpo import grpo
from envrl.ranges import Fraction
from envrl.registry import register


@register("estimator", "stratified", title="Stratified GRPO", compares=True)
def stratified(
    steps: Steps,
    *,
    alpha: Fraction = 1.0,  # share of the strata's advantage; the rest is GRPO's
    counted: str = "search",  # episodes with equally many commands that begin so are one stratum
    std: bool = True,  # divide by the standard deviation
) -> Array:
    """Stratified advantage A = α · A_stratum + (1 − α) · A_grpo (Stratified GRPO, arXiv 2510.06214).

    A_stratum is (R_i − p_{i,t} − μ) / (σ + ε) with the statistics of the episodes of the group in the same stratum; an
    episode alone in its stratum gets 0 there. A stratum is given (`strata`, an id an episode); in a run it is the
    number of commands that begin with the word `counted`: the paper's choice for search agents, which fits WebShop.

    The episodes of stratum 1 have the returns 4 and 2, that of stratum 2 has nobody to be compared with.

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> found = ESTIMATORS["stratified"]([[4.0], [2.0], [9.0]], [["a"]] * 3, strata=[1, 1, 2], std=False)
    >>> [each.tolist() for each in found]
    [[1.0], [-1.0], [0.0]]
    """
    check_range("stratified", "alpha", alpha, 0.0, 1.0)
    lengths = np.diff(steps.offsets)
    begins_N = np.array([command.startswith(counted) for command in steps.commands_N], dtype=np.float64)
    strata = steps.strata or [int(begins.sum()) for begins in steps.per_trajectory(begins_N)]
    strata_N = np.repeat(np.arange(len(strata)), lengths)
    keys = [(group, strata[episode]) for group, episode in zip(steps.groups_N, strata_N, strict=True)]
    scores_N = np.repeat(total_rewards(steps), lengths) - steps.penalties_N
    local_N = np.zeros_like(scores_N)
    for rows in index_sets(keys):
        first_N = rows[np.unique(strata_N[rows], return_index=True)[1]]  # an episode counts once, as in grpo
        if len(first_N) > 1:
            local_N[rows] = normalise(scores_N[rows], scores_N[first_N], std)
    return alpha * local_N + (1.0 - alpha) * grpo(steps, std=std)
