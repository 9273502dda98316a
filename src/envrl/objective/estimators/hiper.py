"""HiPER: a plan is judged from sub-goal to sub-goal, a command from step to step within one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from envrl.objective.advantage import Array, Credit, Steps
from envrl.objective.checks import check_range
from envrl.ranges import Fraction, NonNegative
from envrl.registry import register


@register("estimator", "hiper", title="HiPER", reads=("values",), level="parts", heads={"plan": "step"}, plans=True)
def hiper(
    steps: Steps,
    *,
    gamma: Fraction = 1.0,  # discount from step to step
    lam: Fraction = 1.0,  # λ from step to step within a sub-goal
    plan_lam: Fraction = 0.95,  # λ from sub-goal to sub-goal
    whiten: bool = True,  # advantages of commands, and of plans, get mean 0 and deviation 1 over the update
    value_weight: NonNegative = 0.5,  # of the loss of the commands' head
    plan_weight: NonNegative = 0.5,  # of the loss of the plans' head
) -> Credit:
    """Hierarchical advantage estimation with a head for plans, U, and one for commands, V (arXiv 2602.16165).

    A segment is a step that takes a new sub-goal (an episode's first always does) and those after it that keep it. U is
    read at the first token of its first response, V behind the plan of every response. For commands,
    A_t = δ_t + γ λ A_{t+1} with δ_t = r_t + γ V_{t+1} − V_t inside a segment; after its last step, U of the next
    segment is in the place of V, and 0 in that of A. For the plan of a segment of d steps from s on,
    B_k = R + γ^d U_{k+1} − U_k + γ^d λ' B_{k+1}, where R = Σ γ^i r_{s+i}. After an episode all are 0. The tokens of a
    response up to its command have B where a segment begins and 0 where one is kept; the others have A. A response
    without a plan has A alone.

    Two segments of one step each, with a reward of 4 at the end; U is 1 and 2, V is 0.5 and 3. The commands bring
    0 + 2 − 0.5 and 4 − 3; the plans 4 − 2 = 2, and before it 0 + 2 − 1 + 0.5 · 2.

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> given = {"values": [[[0.0, 0.5], [0.0, 3.0]]], "heads": {"plan": [[1.0, 2.0]]}}
    >>> given |= {"switches": [[True, True]], "plan_lam": 0.5, "whiten": False}
    >>> (advantages,), returns = ESTIMATORS["hiper"].credit([[0.0, 4.0]], [["a", "b"]], **given)
    >>> [each.tolist() for each in advantages], returns["plan"][0].tolist()
    ([[2.0, 1.5], [2.0, 1.0]], [3.0, 4.0])
    """
    for name, value in (("gamma", gamma), ("lam", lam), ("plan_lam", plan_lam)):
        check_range("hiper", name, value, 0.0, 1.0)
    for name, value in (("value_weight", value_weight), ("plan_weight", plan_weight)):
        check_range("hiper", name, value, 0.0, float("inf"))
    found = _estimated(steps, gamma, lam, plan_lam)
    own = [np.array(values) for values in steps.values_N]
    plans = [np.array(values) for values in steps.heads["plan"]]
    for t, values in enumerate(own):
        values[-1] += found.commands_N[t]
        if found.begins_N[t]:
            plans[t][0] += found.plans_N[t]
    has_plan_N = found.begins_N & np.array([len(values) > 1 for values in own], dtype=bool)
    commands_N = _whitened(found.commands_N) if whiten else found.commands_N
    plans_N = np.zeros(len(own))
    plans_N[has_plan_N] = _whitened(found.plans_N[has_plan_N]) if whiten else found.plans_N[has_plan_N]
    advantages = tuple(
        np.array([plan, command][-len(values) :])
        for plan, command, values in zip(plans_N, commands_N, own, strict=True)
    )
    return Credit(advantages, tuple(own), {"plan": tuple(plans)})


@dataclass(frozen=True, slots=True)
class _Found:
    """The advantage of each step's command and, where a segment begins, of its plan."""

    commands_N: Array
    plans_N: Array
    begins_N: Array


def _estimated(steps: Steps, gamma: float, lam: float, plan_lam: float) -> _Found:
    rewards_N = steps.rewards_N - steps.penalties_N
    begins_N = np.array(steps.switches_N, dtype=bool)
    found = _Found(np.zeros_like(rewards_N), np.zeros_like(rewards_N), begins_N)
    for start, stop in zip(steps.offsets[:-1], steps.offsets[1:], strict=True):
        begins_N[start : start + (stop > start)] = True
        following, later = 0.0, 0.0  # what the plans' head gives after the segment, and the plan's advantage there
        end = stop
        for first in start + np.flatnonzero(begins_N[start:stop])[::-1]:
            value, advantage, gained = following, 0.0, 0.0
            for t in range(end - 1, first - 1, -1):
                own = float(steps.values_N[t][-1])
                advantage = rewards_N[t] + gamma * value - own + gamma * lam * advantage
                found.commands_N[t] = advantage
                value, gained = own, rewards_N[t] + gamma * gained
            over = gamma ** (end - first)
            own = float(steps.heads["plan"][first][0])
            later = gained + over * following - own + over * plan_lam * later
            found.plans_N[first] = later
            following, end = own, first
    return found


def _whitened(advantages: Array) -> Array:
    if not len(advantages) or advantages.max() == advantages.min():
        return np.zeros_like(advantages)
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
