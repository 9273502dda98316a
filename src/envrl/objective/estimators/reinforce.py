"""REINFORCE++ and its form with a group's baseline: advantages whitened over the whole update."""

from __future__ import annotations

from typing import Literal

import numpy as np

from envrl.objective.advantage import Array, Steps
from envrl.objective.checks import check_choice, check_range
from envrl.objective.estimators.common import by_group, discounted_returns, normalise
from envrl.ranges import Fraction
from envrl.registry import register

VARIANCE_EPSILON = 1e-8
"""Added to the variance under the root, as the published code does."""


@register("estimator", "reinforce++", title="REINFORCE++")
def reinforce_plus_plus(
    steps: Steps,
    *,
    gamma: Fraction = 1.0,  # discount of step returns
) -> Array:
    """REINFORCE++: A = (G_t − p_t − μ) / √(σ² + ε), over all steps of the update (arXiv 2501.03262).

    G_t = Σ_{k≥t} γ^{k−t} r_k runs over the steps of the episode; μ and the sample variance σ² are those of all steps,
    whatever their group. It compares no episodes of a task with each other, so groups of one do.

    Two steps, 1 and 3: μ = 2, σ² = 2.

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> [each.round(6).tolist() for each in ESTIMATORS["reinforce++"]([[1.0], [3.0]], [["a"], ["a"]], groups=[0, 1])]
    [[-0.707107], [0.707107]]
    """
    check_range("reinforce++", "gamma", gamma, 0.0, 1.0)
    return _whitened(discounted_returns(steps, gamma) - steps.penalties_N)


@register("estimator", "reinforce++-baseline", title="REINFORCE++ with a baseline", compares=True)
def reinforce_plus_plus_baseline(
    steps: Steps,
    *,
    baseline: Literal["trajectories", "steps"] = "trajectories",  # what counts once in the group's mean
) -> Array:
    """REINFORCE++ with a baseline: the return less its group's mean, whitened over all steps of the update.

    A pool of one has a mean of 0, as in GRPO (arXiv 2501.03262, section on the baseline form; the code of verl).

    Two groups: 0 and 4 become −2 and 2, 1 and 1 become 0; their sample variance is 8/3.

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> rewards = [[0.0], [4.0], [1.0], [1.0]]
    >>> found = ESTIMATORS["reinforce++-baseline"](rewards, [["a"]] * 4, groups=[0, 0, 1, 1])
    >>> [each.round(6).tolist() for each in found]
    [[-1.224745], [1.224745], [0.0], [0.0]]
    """
    check_choice("reinforce++-baseline", "baseline", baseline, ("trajectories", "steps"))
    return _whitened(by_group(steps, baseline, lambda scores, pool: normalise(scores, pool, False)))


def _whitened(values_N: Array) -> Array:
    """Return (x − μ) / √(σ² + ε) with the sample variance; exactly 0 where all are equal, and as it is for one."""
    if len(values_N) < 2:
        return values_N.copy()
    if values_N.max() == values_N.min():
        return np.zeros_like(values_N)
    return (values_N - values_N.mean()) / np.sqrt(values_N.var(ddof=1) + VARIANCE_EPSILON)
