"""POAD: a value for every token, and discounts between actions alone."""

from __future__ import annotations

from envrl.objective.advantage import Credit, Steps
from envrl.objective.checks import check_range
from envrl.objective.estimators.gae import gae
from envrl.ranges import Fraction, NonNegative
from envrl.registry import register


@register("estimator", "poad", title="POAD", reads=("values",), level="token")
def poad(
    steps: Steps,
    *,
    gamma: Fraction = 0.95,  # discount from action to action
    lam: Fraction = 0.95,  # λ from token to token, and from action to action
    whiten: bool = False,  # advantages get mean 0 and deviation 1 over the update
    value_weight: NonNegative = 0.5,  # of the head's loss
) -> Credit:
    """Policy optimisation with action decomposition: `gae` with no discount inside an action (arXiv 2405.15821).

    The Bellman backup goes from token to token of an action with γ = 1, and from its last token to the first of the
    next action with `gamma`. So how an action is cut into tokens does not change what it is worth.

    A step of two tokens with the values 1 and 2, then one of one token with 4, and a reward of 8 at its end. From the
    end: 8 − 4 = 4, 0.5 · 4 − 2 + 0.25 · 4 = 1, 2 − 1 + 0.5 · 1 = 1.5.

    >>> import numpy as np
    >>> from envrl.objective.advantage import ESTIMATORS
    >>> values = [[np.array([1.0, 2.0]), 4.0]]
    >>> found = ESTIMATORS["poad"]([[0.0, 8.0]], [["a", "b"]], values=values, gamma=0.5, lam=0.5)
    >>> [each.tolist() for each in found[0]]
    [[1.5, 1.0], [4.0]]
    """
    check_range("poad", "gamma", gamma, 0.0, 1.0)
    check_range("poad", "lam", lam, 0.0, 1.0)
    return gae(steps, gamma=gamma, lam=lam, token_gamma=1.0, token_lam=lam, whiten=whiten, value_weight=value_weight)
