"""PPO: the clipped surrogate, with one ratio a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envrl.objective.losses.common import TokenLoss, clipped_surrogate, log_ratio
from envrl.ranges import Fraction, NonNegative
from envrl.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("loss", "ppo")
def ppo(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    *,
    clip_low: Fraction = 0.2,  # the ratio is clipped below at 1 - clip_low
    clip_high: NonNegative = 0.2,  # the ratio is clipped above at 1 + clip_high
    dual_clip: NonNegative = 0.0,  # bound of the loss where the advantage is negative, above 1; 0: off
) -> TokenLoss:
    """Clipped surrogate max(−A r, −A clip(r, 1 − low, 1 + high)) with r = exp(logprob − old) of each token.

    `dual_clip` = c (above 1; None or 0: off) bounds it by −A c if A < 0. Sources: PPO, arXiv 1707.06347, equation 7;
    dual clip, arXiv 1912.09729; clip_high above clip_low, DAPO, arXiv 2503.14476. `row_N` is not used.

    Ratios 1.5, 0.5, 5 with A = 1, 1, −2: the first is cut at 1.2, the second stays, a bound of 3 makes −A r = 10 a 6.

    >>> import torch
    >>> from envrl.objective.policy import TOKEN_LOSSES
    >>> ratios, advantages, rows = torch.tensor([1.5, 0.5, 5.0]), torch.tensor([1.0, 1.0, -2.0]), torch.arange(3)
    >>> loss, clipped = TOKEN_LOSSES["ppo"](ratios.log(), torch.zeros(3), advantages, rows, dual_clip=3.0)
    >>> [round(value, 4) for value in loss.tolist()], clipped.tolist()
    ([-1.2, -0.5, 6.0], [True, False, True])
    """
    ratio_N = log_ratio(logprobs_N, old_logprobs_N).exp()
    return clipped_surrogate(ratio_N, advantages_N, clip_low, clip_high, dual_clip)
