"""What several policy losses are made of: ratio, clipped surrogate, checks. Suffix `_N`: over counted tokens."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple

from envrl.errors import UserError
from envrl.objective.checks import check_range

if TYPE_CHECKING:  # a recipe's settings are read from the signatures of losses, without torch
    from torch import Tensor

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are clamped to ± this value, so that exp() stays finite in float32 and 0 · inf never makes a NaN."""


class TokenLoss(NamedTuple):
    """The loss of every token, and whether its gradient was cut off or its weight capped (for the clip fraction)."""

    loss_N: Tensor
    clipped_N: Tensor


def log_ratio(logprobs_N: Tensor, old_logprobs_N: Tensor) -> Tensor:
    """Return logprob − old of each token, clamped to ± `LARGEST_LOG_RATIO`."""
    return (logprobs_N - old_logprobs_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def clipped_surrogate(
    ratio_N: Tensor, advantages_N: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> TokenLoss:
    """Return max(−A r, −A clip(r, 1 − low, 1 + high)) of each token; `dual_clip` = c bounds it by −A c where A < 0."""
    check_clips(clip_low, clip_high, dual_clip)
    plain_N = -advantages_N * ratio_N
    bounded_N = -advantages_N * ratio_N.clamp(1.0 - clip_low, 1.0 + clip_high)
    clipped_N = bounded_N > plain_N
    loss_N = plain_N.maximum(bounded_N)
    if dual_clip:
        ceiling_N = -advantages_N * dual_clip
        capped_N = (advantages_N < 0) & (loss_N > ceiling_N)
        loss_N = ceiling_N.where(capped_N, loss_N)
        clipped_N = clipped_N | capped_N
    return TokenLoss(loss_N, clipped_N)


def check_clips(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    """Raise `UserError` for bounds of the ratio that are out of range."""
    check_range("policy loss", "clip_low", clip_low, 0.0, 1.0)
    check_range("policy loss", "clip_high", clip_high, 0.0, inf)
    if dual_clip and not dual_clip > 1.0:
        raise UserError(f"policy loss: dual_clip must be above 1 (None or 0: off), not {dual_clip!r}")
