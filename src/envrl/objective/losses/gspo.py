"""GSPO: the clipped surrogate, with one ratio a sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envrl.objective.losses.common import LARGEST_LOG_RATIO, TokenLoss, clipped_surrogate
from envrl.ranges import Fraction, NonNegative
from envrl.registry import register

if TYPE_CHECKING:
    from torch import Tensor


def sequence_log_ratio(logprobs_N: Tensor, old_logprobs_N: Tensor, row_N: Tensor) -> Tensor:
    """Return the mean over its row of each token's logprob − old, without a gradient."""
    log_ratio_N = (logprobs_N - old_logprobs_N).detach()
    rows = int(row_N.max()) + 1 if row_N.numel() else 0
    counts_R = log_ratio_N.new_zeros(rows).index_add(0, row_N, log_ratio_N.new_ones(len(log_ratio_N)))
    sums_R = log_ratio_N.new_zeros(rows).index_add(0, row_N, log_ratio_N)
    mean_R = (sums_R / counts_R.clamp(min=1.0)).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return mean_R[row_N]


def weight(logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, row_N: Tensor, **_: Any) -> Tensor:
    """Return s of each token's row, the importance weight in its loss."""
    return sequence_log_ratio(logprobs_N, old_logprobs_N, row_N).exp()


@register("loss", "gspo", aggregation="sequence_mean", weight=weight)
def gspo(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    row_N: Tensor,
    *,
    clip_low: Fraction = 0.2,  # the ratio is clipped below at 1 - clip_low
    clip_high: NonNegative = 0.2,  # the ratio is clipped above at 1 + clip_high
    dual_clip: NonNegative = 0.0,  # bound of the loss where the advantage is negative, above 1; 0: off
) -> TokenLoss:
    """The clipped surrogate with one ratio per sequence, s = exp(mean over its tokens of logprob − old).

    Every token's ratio has the value s; its gradient flows through the token's own log-prob:
    s_t = stop(s) · exp(logprob_t − stop(logprob_t)) (GSPO-token, arXiv 2507.18071, section 4.3). `row_N` is the row
    (counted from 0) of each token; all counted tokens of a row must be in the same call.

    Ratios 1.21 and 1 in one row, 0.9 in another: s is the geometric mean, 1.1 and 0.9; A = 1, 1, −1.

    >>> import torch
    >>> from envrl.objective.policy import TOKEN_LOSSES
    >>> ratios, advantages = torch.tensor([1.21, 1.0, 0.9]), torch.tensor([1.0, 1.0, -1.0])
    >>> loss, clipped = TOKEN_LOSSES["gspo"](ratios.log(), torch.zeros(3), advantages, torch.tensor([0, 0, 1]))
    >>> [round(value, 4) for value in loss.tolist()], clipped.tolist()
    ([-1.1, -1.1, 0.9], [False, False, False])
    """
    ratio_N = (sequence_log_ratio(logprobs_N, old_logprobs_N, row_N) + logprobs_N - logprobs_N.detach()).exp()
    return clipped_surrogate(ratio_N, advantages_N, clip_low, clip_high, dual_clip)
