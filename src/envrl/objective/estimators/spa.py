"""SPA: the return is shared out over the steps by a head that learns how far each of them gets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from envrl.objective.advantage import Credit, Steps
from envrl.objective.checks import check_range
from envrl.objective.estimators.common import total_rewards
from envrl.objective.estimators.gae import gae
from envrl.ranges import Fraction, NonNegative
from envrl.registry import register


@register("estimator", "spa", title="SPA", reads=("values",), heads={"progress": "last"})
def spa(
    steps: Steps,
    *,
    contribution: NonNegative = 1.0,  # α: weight of the learned progress in a step's reward
    grounding: NonNegative = 0.5,  # β: what a step gets whose command is one
    gamma: Fraction = 1.0,  # discount from step to step
    lam: Fraction = 0.95,  # λ from step to step
    whiten: bool = True,  # advantages get mean 0 and deviation 1 over the update
    value_weight: NonNegative = 0.5,  # of the critic's loss
    progress_weight: NonNegative = 0.5,  # of the progress head's loss
) -> Credit:
    """Stepwise progress attribution: GAE over the rewards α c_t + β g_t (arXiv 2505.20732, section 3).

    c_t is what the head `progress` reads at the last token of step t, g_t is 1 for a valid command, and a step's
    penalty is subtracted. The head learns (Σ_t c_t − R)² of each episode with the return R: its targets are
    c_t − (Σ c − R), at which (c_t − target)² has the same gradient for every step.

    The head gives 0.25 and 0.5 to two steps, of which the second is invalid, the critic 0: they are worth 0.25 + 0.5
    and 0.5, so 1.25 and 0.5 are still to come. The episode had no reward, so the head's sum of 0.75 should have been 0:
    both targets lie lower by as much.

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> given = {"values": [[0.0, 0.0]], "heads": {"progress": [[0.25, 0.5]]}}
    >>> given |= {"valid": [[True, False]], "lam": 1.0, "whiten": False}
    >>> (advantages,), returns = ESTIMATORS["spa"].credit([[0.0, 0.0]], [["a", "b"]], **given)
    >>> advantages.tolist(), returns["progress"][0].tolist()
    ([1.25, 0.5], [-0.5, -0.25])
    """
    for name, value in (("contribution", contribution), ("grounding", grounding), ("progress_weight", progress_weight)):
        check_range("spa", name, value, 0.0, float("inf"))
    progress_N = np.array([float(values[-1]) for values in steps.heads["progress"]])
    shares = steps.per_trajectory(progress_N)
    missing = [share.sum() - total for share, total in zip(shares, total_rewards(steps), strict=True)]
    surplus_N = np.repeat(missing, np.diff(steps.offsets)) if missing else np.zeros(0)
    rewards_N = contribution * progress_N + grounding * np.array(steps.valid_N, dtype=float)
    credit = gae(
        replace(steps, rewards_N=rewards_N),
        gamma=gamma,
        lam=lam,
        level="step",
        whiten=whiten,
        value_weight=value_weight,
    )
    return replace(credit, heads={"progress": tuple(np.array([target]) for target in progress_N - surplus_N)})
