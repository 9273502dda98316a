"""GRPO: an episode's return, relative to its group's."""

from __future__ import annotations

from typing import Literal

from envrl.objective.advantage import Array, Steps
from envrl.objective.checks import check_choice
from envrl.objective.estimators.common import by_group, normalise
from envrl.registry import register


@register("estimator", "grpo", title="GRPO", compares=True)
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

    Three episodes of one, two and one steps, with the returns 10, 10 and 4: μ is 8.

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> found = ESTIMATORS["grpo"]([[10.0], [0.0, 10.0], [4.0]], [["a"], ["a", "b"], ["a"]], std=False)
    >>> [each.tolist() for each in found]
    [[2.0], [2.0, 2.0], [-4.0]]
    """
    check_choice("grpo", "baseline", baseline, ("trajectories", "steps"))
    return by_group(steps, baseline, lambda scores, pool: normalise(scores, pool, std))
