"""RLOO: an episode's return, less the mean of the others in its group."""

from __future__ import annotations

from typing import Literal

from envrl.objective.advantage import Array, Steps
from envrl.objective.checks import check_choice
from envrl.objective.estimators.common import by_group, normalise
from envrl.registry import register


@register("estimator", "rloo", title="RLOO", compares=True)
def rloo(
    steps: Steps,
    *,
    baseline: Literal["trajectories", "steps"] = "trajectories",  # what counts once in the group's mean
) -> Array:
    """Leave-one-out advantage A = n/(n−1) · (R_i − p_{i,t} − μ), which is R_i − mean of the others.

    n is the size of the pool: trajectories or steps, by `baseline`. A pool of one gives the raw return (RLOO, arXiv
    2402.14740).

    Returns 3, 5 and 4: the first is 3 − (5 + 4) / 2.

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> [each.tolist() for each in ESTIMATORS["rloo"]([[3.0], [5.0], [4.0]], [["a"], ["a"], ["a"]])]
    [[-1.5], [1.5], [0.0]]
    """
    check_choice("rloo", "baseline", baseline, ("trajectories", "steps"))
    return by_group(steps, baseline, lambda scores, pool: _leave_one_out(len(pool)) * normalise(scores, pool, False))


def _leave_one_out(count: int) -> float:
    return count / (count - 1) if count > 1 else 1.0
