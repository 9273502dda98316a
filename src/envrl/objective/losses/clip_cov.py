"""Clip-Cov: PPO's loss without a few of the tokens whose log-prob and advantage go together most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from envrl.errors import UserError
from envrl.objective.losses.common import TokenLoss, clipped_surrogate, log_ratio
from envrl.ranges import Fraction, NonNegative
from envrl.registry import register

if TYPE_CHECKING:
    from torch import Tensor


def dropped_tokens(
    logprobs_N: NDArray[np.float64],
    advantages_N: NDArray[np.float64],
    key: int,
    *,
    cov_ratio: float,
    cov_low: float,
    cov_high: float,
    **_: Any,
) -> NDArray[np.float64]:
    """Return 1 for each token of an optimiser step that is left out of the loss, else 0; `key` seeds the choice.

    Of the N tokens, max(1, ⌊r N⌋) are drawn among those with ω_low < (A − mean A)(logprob − mean logprob) < ω_high; all
    of them if they are fewer. r = `cov_ratio`, 0: none. Raises `UserError` if ω_low is not below ω_high.
    """
    if not cov_low < cov_high:
        raise UserError(f"policy loss 'clip_cov': cov_low = {cov_low:g} must be below cov_high = {cov_high:g}")
    dropped_N = np.zeros(len(advantages_N))
    if not cov_ratio or not len(advantages_N):
        return dropped_N
    covariance_N = (advantages_N - advantages_N.mean()) * (logprobs_N - logprobs_N.mean())
    eligible = np.flatnonzero((covariance_N > cov_low) & (covariance_N < cov_high))
    order = np.random.Generator(np.random.PCG64(key)).permutation(len(eligible))
    dropped_N[eligible[order[: max(1, int(cov_ratio * len(advantages_N)))]]] = 1.0
    return dropped_N


@register("loss", "clip_cov", beforehand=dropped_tokens)
def clip_cov(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    dropped_N: Tensor,
    *,
    clip_low: Fraction = 0.2,  # the ratio is clipped below at 1 - clip_low
    clip_high: NonNegative = 0.2,  # the ratio is clipped above at 1 + clip_high
    dual_clip: NonNegative = 0.0,  # bound of the loss where the advantage is negative, above 1; 0: off
    cov_ratio: Fraction = 0.0002,  # share of an optimiser step's tokens that is left out; 0: none
    cov_low: float = 1.0,  # they are drawn among tokens whose covariance of advantage and log-prob is above this
    cov_high: float = 5.0,  # and below this
) -> TokenLoss:
    """PPO's clipped surrogate; a token that `dropped_tokens` draws has a loss of 0, and so no gradient.

    Likely tokens with a high advantage, and unlikely ones with a low advantage, are what makes entropy fall. Source:
    Clip-Cov, arXiv 2505.22617, section 4; SPEAR, arXiv 2509.22601. `row_N` is not used.

    Log-probs −1 and −3, A = 3 and −3: the means are −2 and 0, both covariances 3, so both may be drawn, and half of two
    tokens is one. With bounds of 4 and 5 there is none to draw.

    >>> import torch
    >>> from envrl.objective.policy import TOKEN_LOSSES
    >>> logprobs, advantages, rows = torch.tensor([-1.0, -3.0]), torch.tensor([3.0, -3.0]), torch.tensor([0, 0])
    >>> loss, clipped = TOKEN_LOSSES["clip_cov"](logprobs, logprobs, advantages, rows, cov_ratio=0.5)
    >>> sorted(abs(value) for value in loss.tolist()), sorted(clipped.tolist())
    ([0.0, 3.0], [False, True])
    >>> TOKEN_LOSSES["clip_cov"](logprobs, logprobs, advantages, rows, cov_ratio=0.5, cov_low=4.0).loss_N.tolist()
    [-3.0, 3.0]
    """
    ratio_N = log_ratio(logprobs_N, old_logprobs_N).exp()
    loss_N, clipped_N = clipped_surrogate(ratio_N, advantages_N, clip_low, clip_high, dual_clip)
    left_out_N = dropped_N > 0
    return TokenLoss(loss_N.masked_fill(left_out_N, 0.0), clipped_N | left_out_N)
