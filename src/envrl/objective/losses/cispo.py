"""CISPO: REINFORCE with the clipped ratio as a weight, so that every token keeps a gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envrl.objective.losses.common import TokenLoss, check_clips, log_ratio
from envrl.ranges import Fraction, NonNegative
from envrl.registry import register

if TYPE_CHECKING:
    from torch import Tensor


def weight(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
    **_: Any,
) -> Tensor:
    """Return the clipped ratio of each token, without a gradient: the importance weight in its loss."""
    weight_N = log_ratio(logprobs_N, old_logprobs_N).exp().detach().clamp(1.0 - clip_low, 1.0 + clip_high)
    return weight_N.clamp(max=dual_clip).where(advantages_N < 0, weight_N) if dual_clip else weight_N


@register("loss", "cispo", weight=weight)
def cispo(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    *,
    clip_low: Fraction = 0.2,  # the ratio is clipped below at 1 - clip_low
    clip_high: NonNegative = 0.2,  # the ratio is clipped above at 1 + clip_high
    dual_clip: NonNegative = 0.0,  # bound of the loss where the advantage is negative, above 1; 0: off
) -> TokenLoss:
    """REINFORCE weighted by the clipped ratio, −stop(clip(r, 1 − low, 1 + high)) · A · logprob.

    Every token keeps a gradient (MiniMax-M1, arXiv 2506.13585, equations 4 and 5). If A < 0, `dual_clip` caps the
    weight; it has an effect only below 1 + clip_high. `row_N` is not used.

    Log-probs −1 and −2 after −2 and −1: ratios e and 1/e, clipped to 1.2 and 0.8; A = 1, −1.

    >>> import torch
    >>> from envrl.objective.policy import TOKEN_LOSSES
    >>> new, old, advantages = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0]), torch.tensor([1.0, -1.0])
    >>> loss, clipped = TOKEN_LOSSES["cispo"](new, old, advantages, torch.tensor([0, 0]))
    >>> [round(value, 4) for value in loss.tolist()], clipped.tolist()
    ([1.2, -1.6], [True, True])
    """
    check_clips(clip_low, clip_high, dual_clip)
    ratio_N = log_ratio(logprobs_N, old_logprobs_N).exp().detach()
    bounds = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}
    weight_N = weight(logprobs_N, old_logprobs_N, advantages_N, row_N, **bounds)
    return TokenLoss(-weight_N * advantages_N * logprobs_N, weight_N != ratio_N)
