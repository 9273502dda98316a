"""GAE: generalised advantage estimation with a value head, over the tokens and the steps of whole episodes."""

from __future__ import annotations

from typing import Literal

import numpy as np

from envrl.objective.advantage import Array, Credit, Steps
from envrl.objective.checks import check_choice, check_range
from envrl.ranges import Fraction, NonNegative
from envrl.registry import register


@register("estimator", "gae", title="PPO", reads=("values",))
def gae(
    steps: Steps,
    *,
    gamma: Fraction = 1.0,  # discount from step to step
    lam: Fraction = 1.0,  # λ from step to step
    level: Literal["token", "step"] = "token",  # what a value is estimated for: every sampled token, or a step's first
    token_gamma: Fraction = 1.0,  # discount from token to token of a step
    token_lam: Fraction = 1.0,  # λ from token to token of a step
    whiten: bool = False,  # advantages get mean 0 and deviation 1 over the update
    value_weight: NonNegative = 0.5,  # of the head's loss, the mean of (value − return)²
) -> Credit:
    """Generalised advantage A_j = δ_j + γ_j λ_j A_{j+1}, δ_j = r_j + γ_j V_{j+1} − V_j (arXiv 1506.02438, equation 16).

    j runs over all judged tokens of an episode, through turns and segments. After the last token of a step, r is the
    step's reward minus its penalty, and γ, λ are `gamma`, `lam`; within a step r is 0, and they are `token_gamma`,
    `token_lam`. After an episode V is 0, whatever ended it. The head learns the returns A_j + V_j. `whiten` divides by
    √(σ² + 1e-8), as the code of verl does; returns are of the advantages before. Which tokens are judged is the
    trainer's to ask (`level`): the function takes the values that it is given, one a step or several.

    Two steps with the values 1 and 2 and a reward of 4 at the end: δ is 2 − 1 and 4 − 2; half of the second is added.

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> found = ESTIMATORS["gae"]([[0.0, 4.0]], [["a", "b"]], values=[[1.0, 2.0]], lam=0.5)
    >>> [each.tolist() for each in found]
    [[2.0, 2.0]]
    """
    check_choice("gae", "level", level, ("token", "step"))
    for name, value in (("gamma", gamma), ("lam", lam), ("token_gamma", token_gamma), ("token_lam", token_lam)):
        check_range("gae", name, value, 0.0, 1.0)
    check_range("gae", "value_weight", value_weight, 0.0, float("inf"))
    advantages_N = [np.zeros_like(values) for values in steps.values_N]
    for start, stop in zip(steps.offsets[:-1], steps.offsets[1:], strict=True):
        value, advantage = 0.0, 0.0  # of what follows
        for step in range(stop - 1, start - 1, -1):
            reward, discount, mixed = steps.rewards_N[step] - steps.penalties_N[step], gamma, gamma * lam
            for place in range(len(steps.values_N[step]) - 1, -1, -1):
                own = steps.values_N[step][place]
                advantage = reward + discount * value - own + mixed * advantage
                advantages_N[step][place] = advantage
                value, reward, discount, mixed = own, 0.0, token_gamma, token_gamma * token_lam
    returns_N = [a + v for a, v in zip(advantages_N, steps.values_N, strict=True)]
    return Credit(tuple(_whitened(advantages_N) if whiten else advantages_N), tuple(returns_N))


def _whitened(parts: list[Array]) -> list[Array]:
    together = np.concatenate([np.zeros(0), *parts])
    if len(together) < 2:
        return parts
    if together.max() == together.min():
        return [np.zeros_like(part) for part in parts]
    deviation = np.sqrt(together.var(ddof=1) + 1e-8)
    return [(part - together.mean()) / deviation for part in parts]
