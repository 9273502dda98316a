"""GiGPO: GRPO's advantage, and one among the steps of the group that were taken in the same state."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher
from math import inf
from typing import Literal

from envrl.objective.advantage import Array, Steps
from envrl.objective.checks import check_choice, check_range
from envrl.objective.estimators.common import discounted_returns, index_sets, normalise_sets
from envrl.objective.estimators.grpo import grpo
from envrl.ranges import Fraction, NonNegative
from envrl.registry import register


@register("estimator", "gigpo", title="GiGPO", compares=True)
def gigpo(
    steps: Steps,
    *,
    gamma: Fraction = 0.95,  # discount of step returns
    step_weight: NonNegative = 1.0,  # weight of the step advantage
    step_norm: Literal["mean_std", "mean"] = "mean_std",  # normalisation of step returns
    similarity: Fraction = 1.0,  # texts at least so alike are one state (difflib's ratio); 1: equal texts alone
    baseline: Literal["trajectories", "steps"] = "trajectories",  # of the episode part, as in grpo
    std: bool = True,  # the episode part is divided by the group's standard deviation
) -> Array:
    """Group-in-group advantage A = A_grpo + w · A_step (arXiv 2505.10978, equations 3 to 8).

    A_step is the discounted return from the step on, Σ_{k≥t} γ^{k−t} r_k, minus the step's own penalty, normalised over
    the steps of the group with the same observation text, including repeats within one trajectory; a step alone in its
    set gets 0. `step_norm="mean"` omits the division by σ in A_step, `std=False` in A_grpo. With `similarity` below 1
    a step joins the first set of its group whose first text is so alike (the code of verl-agent, there 0.95).

    Two episodes pass through "b": their returns from there are 5 and 1, which is ±2 about their mean of 3.

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> plain = {"gamma": 0.5, "step_norm": "mean", "std": False}
    >>> found = ESTIMATORS["gigpo"]([[0.0, 5.0], [1.0]], [["a", "b"], ["b"]], **plain)
    >>> [each.tolist() for each in found]  # the returns 5 and 1 are ±2 about their mean, too
    [[2.0, 4.0], [-4.0]]
    """
    check_choice("gigpo", "step_norm", step_norm, ("mean_std", "mean"))
    for name, value, most in (
        ("gamma", gamma, 1.0),
        ("similarity", similarity, 1.0),
        ("step_weight", step_weight, inf),
    ):
        check_range("gigpo", name, value, 0.0, most)
    returns_N = discounted_returns(steps, gamma) - steps.penalties_N
    step_N = normalise_sets(returns_N, _states(steps, similarity), step_norm == "mean_std")
    return grpo(steps, baseline=baseline, std=std) + step_weight * step_N


def _states(steps: Steps, similarity: float) -> Sequence[Hashable]:
    """Return what stands for each step's state: its group, and its text or the first text that is so alike."""
    if similarity == 1.0:
        return list(zip(steps.groups_N, steps.observations_N, strict=True))
    states: list[Hashable] = [None] * len(steps.groups_N)
    for rows in index_sets(steps.groups_N):
        firsts: list[str] = []
        known: dict[str, str] = {}
        for row in rows:
            text = steps.observations_N[row]
            if text not in known:
                known[text] = next((first for first in firsts if _alike(first, text, similarity)), text)
                if known[text] is text:
                    firsts.append(text)
            states[row] = (steps.groups_N[row], known[text])
    return states


def _alike(first: str, text: str, least: float) -> bool:
    matcher = SequenceMatcher(None, first, text)  # the two quick ratios are upper bounds
    return matcher.real_quick_ratio() >= least and matcher.quick_ratio() >= least and matcher.ratio() >= least
