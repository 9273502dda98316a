"""MaxRL: a return relative to its group's mean, in units of that mean, so that rare wins weigh most."""

from __future__ import annotations

import numpy as np

from envrl.errors import UserError
from envrl.objective.advantage import Array, Steps
from envrl.objective.estimators.common import EPSILON, index_sets, total_rewards
from envrl.registry import register


@register("estimator", "maxrl", title="MaxRL", compares=True, positive=True)
def maxrl(steps: Steps) -> Array:
    """Maximum-likelihood advantage A = (R_i − p_{i,t} − μ) / (μ + ε), μ the group's mean return (arXiv 2602.02710).

    For returns of 0 and 1, μ is the success rate, and the gradient is that of log μ, truncated to what the group's size
    can tell. The mean is over episodes, without penalties. In a group without a success the division is left out.
    Raises `UserError` for a negative return, of which μ would be no measure.

    One win in four: the mean is 1/4, so the win gets 3 and each failure −1.

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> [each.round(4).tolist() for each in ESTIMATORS["maxrl"]([[1.0], [0.0], [0.0], [0.0]], [["a"]] * 4)]
    [[3.0], [-1.0], [-1.0], [-1.0]]
    """
    returns = total_rewards(steps)
    if len(returns) and returns.min() < 0.0:
        raise UserError(
            f"objective.estimator = 'maxrl' is for returns from 0 on, and an episode has {returns.min():g}: take 'grpo'"
        )
    lengths = np.diff(steps.offsets)
    episodes_N = np.repeat(np.arange(len(returns)), lengths)
    advantages_N = np.zeros_like(steps.rewards_N)
    for rows in index_sets(steps.groups_N):
        group = returns[np.unique(episodes_N[rows])]
        mean = float(group.max()) if group.max() == group.min() else float(group.mean())
        scale = mean + EPSILON if mean > 0.0 else 1.0
        advantages_N[rows] = (returns[episodes_N[rows]] - steps.penalties_N[rows] - mean) / scale
    return advantages_N
