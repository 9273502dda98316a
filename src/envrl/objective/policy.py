"""Policy losses per token (`TOKEN_LOSSES`, for the trainer) and of padded sequences (`LOSSES`); KL and entropy.

Suffix `_N`: over the concatenated counted tokens of a batch; `_BT`: sequences by tokens, padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from envrl.errors import UserError
from envrl.objective.aggregation import row_weights
from envrl.objective.checks import check_range
from envrl.ranges import Fraction, NonNegative
from envrl.registry import Entry, View, blame, check_settings, register

if TYPE_CHECKING:  # a recipe's settings are read from these signatures, without torch
    from torch import Tensor

__all__ = [
    "LOSSES",
    "TOKEN_LOSSES",
    "TokenLoss",
    "cispo",
    "entropy",
    "gspo",
    "importance_ratio",
    "kl_k3",
    "ppo",
    "row_weights",
    "stale_importance",
    "truncated_importance",
]

LARGEST_LOG_RATIO = 20.0
"""Log-ratios are clamped to ± this value, so that exp() stays finite in float32 and 0 · inf never makes a NaN."""


class TokenLoss(NamedTuple):
    """The loss of every token, and whether its gradient was clipped or its weight capped (for the clip fraction)."""

    loss_N: Tensor
    clipped_N: Tensor


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
    """
    ratio_N = _log_ratio(logprobs_N, old_logprobs_N).exp()
    return _surrogate(ratio_N, advantages_N, clip_low, clip_high, dual_clip)


@register("loss", "gspo", aggregation="sequence_mean")
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
    """
    log_ratio_N = (logprobs_N - old_logprobs_N).detach()
    rows = int(row_N.max()) + 1 if row_N.numel() else 0
    counts_R = log_ratio_N.new_zeros(rows).index_add(0, row_N, log_ratio_N.new_ones(len(log_ratio_N)))
    sums_R = log_ratio_N.new_zeros(rows).index_add(0, row_N, log_ratio_N)
    mean_R = (sums_R / counts_R.clamp(min=1.0)).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    ratio_N = (mean_R[row_N] + logprobs_N - logprobs_N.detach()).exp()
    return _surrogate(ratio_N, advantages_N, clip_low, clip_high, dual_clip)


@register("loss", "cispo")
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
    """
    _check_clips(clip_low, clip_high, dual_clip)
    ratio_N = _log_ratio(logprobs_N, old_logprobs_N).exp().detach()
    weight_N = ratio_N.clamp(1.0 - clip_low, 1.0 + clip_high)
    if dual_clip:
        weight_N = weight_N.clamp(max=dual_clip).where(advantages_N < 0, weight_N)
    return TokenLoss(-weight_N * advantages_N * logprobs_N, weight_N != ratio_N)


def _log_ratio(logprobs_N: Tensor, old_logprobs_N: Tensor) -> Tensor:
    return (logprobs_N - old_logprobs_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def _surrogate(
    ratio_N: Tensor, advantages_N: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> TokenLoss:
    _check_clips(clip_low, clip_high, dual_clip)
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


def _check_clips(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    check_range("policy loss", "clip_low", clip_low, 0.0, 1.0)
    check_range("policy loss", "clip_high", clip_high, 0.0, inf)
    if dual_clip and not dual_clip > 1.0:
        raise UserError(f"policy loss: dual_clip must be above 1 (None or 0: off), not {dual_clip!r}")


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A registered policy loss, per token."""

    entry: Entry

    def __call__(
        self, logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, row_N: Tensor, **knobs: Any
    ) -> TokenLoss:
        """Return every token's loss; raise `UserError` for an unknown knob or a result of the wrong shape."""
        check_settings(f"the {self.entry.called}", knobs, self.entry.settings)
        with blame(self.entry):
            loss = self.entry.target(logprobs_N, old_logprobs_N, advantages_N, row_N, **knobs)
        if not isinstance(loss, TokenLoss):
            loss = TokenLoss(loss, logprobs_N.new_zeros(len(logprobs_N)).bool())
        if getattr(loss.loss_N, "shape", None) != logprobs_N.shape:
            given = f"shape {tuple(loss.loss_N.shape)}" if hasattr(loss.loss_N, "shape") else f"{loss.loss_N!r:.60}"
            raise UserError(
                f"the {self.entry.called} must return one loss a token, {len(logprobs_N)} in all, not {given}"
            )
        return loss


TOKEN_LOSSES = View("loss", PolicyLoss)
"""Policy losses per token, by name: the built-in ones and those that `envrl.register("loss", name)` registered."""


@dataclass(frozen=True, slots=True)
class SequenceLoss:
    """A policy loss of padded sequences: the aggregated token losses."""

    entry: Entry

    def __call__(
        self,
        logprobs_BT: Tensor,
        old_logprobs_BT: Tensor,
        advantages_BT: Tensor,
        mask_BT: Tensor,
        *,
        aggregation: str | None = None,
        constant: float | None = None,
        **knobs: Any,
    ) -> Tensor:
        """Return the scalar loss of (sequences, tokens) tensors; masked-out entries are never read.

        `aggregation` and `constant` are as in `row_weights`; the other knobs are those of the token loss. Without any
        counted token the loss is 0. Raises `UserError` for an unknown knob, a value out of range or unequal shapes.
        """
        token_loss = PolicyLoss(self.entry)
        check_settings(f"the {self.entry.called}", knobs, self.entry.settings)
        for name, tensor in (("old_logprobs", old_logprobs_BT), ("advantages", advantages_BT), ("mask", mask_BT)):
            if logprobs_BT.ndim != 2 or tensor.shape != logprobs_BT.shape:
                raise UserError(
                    f"the {self.entry.called} takes (sequences, tokens) tensors of one shape, but logprobs are "
                    f"{tuple(logprobs_BT.shape)} and {name} {tuple(tensor.shape)}"
                )
        counted_BT = mask_BT.bool()
        row_N = counted_BT.nonzero()[:, 0]
        loss_N, _ = token_loss(
            logprobs_BT[counted_BT], old_logprobs_BT[counted_BT], advantages_BT[counted_BT], row_N, **knobs
        )
        how: str = aggregation or self.entry.traits.get("aggregation", "token_mean")
        weights_B, shares_B = row_weights(counted_BT.sum(1).tolist(), how, constant)
        weight_N = loss_N.new_tensor(weights_B)[row_N]
        return (weight_N * loss_N).sum() / (float(shares_B.sum()) or 1.0)


LOSSES = View("loss", SequenceLoss)
"""Policy losses of padded sequences, by name."""


def truncated_importance(old_logprobs_N: Tensor, sampled_logprobs_N: Tensor, cap: float) -> Tensor:
    """Return each token's importance weight min(exp(old − sampled), cap), without a gradient.

    It multiplies the token's policy loss, to correct for the difference between the sampler's and the trainer's
    distribution (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy training").
    """
    return importance_ratio(old_logprobs_N, sampled_logprobs_N).clamp(max=cap)


def stale_importance(logprobs_N: Tensor, sampled_logprobs_N: Tensor, cap: float) -> Tensor:
    """Return the importance weight min(1, cap / ratio) of each token that an earlier policy sampled.

    It has no gradient. The loss of such a token has ratio = exp(logprob − sampled) in it: times this weight it is
    truncated at the cap.
    """
    return (cap / importance_ratio(logprobs_N, sampled_logprobs_N)).clamp(max=1.0)


def importance_ratio(logprobs_N: Tensor, sampled_logprobs_N: Tensor) -> Tensor:
    """Return each token's exp(logprob − sampled), without a gradient."""
    return _log_ratio(logprobs_N, sampled_logprobs_N).exp().detach()


def kl_k3(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """Return the k3 estimate of KL(policy ‖ reference) of each token, exp(d) − d − 1 with d = reference − logprob.

    Never negative; for tokens from the policy it is unbiased as a value, biased as a loss (Schulman, "Approximating KL
    divergence", 2020; method of DeepSeekMath, arXiv 2402.03300, equation 4).
    """
    difference_N = (reference_logprobs_N - logprobs_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return difference_N.expm1() - difference_N


def entropy(logprobs_NV: Tensor) -> Tensor:
    """Return the entropy −Σ p log p (nats) of each row of log-probabilities; −inf marks excluded tokens."""
    ruled_out_NV = logprobs_NV.isneginf()
    # filled before exp(), so that neither 0 · inf nor its gradient occurs
    filled_NV = logprobs_NV.masked_fill(ruled_out_NV, 0.0)
    return -(filled_NV.exp() * filled_NV).sum(-1)
