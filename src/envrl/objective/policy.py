"""Policy losses per token (`TOKEN_LOSSES`, for the trainer) and of padded sequences (`LOSSES`); entropy.

Suffix `_N`: over the concatenated counted tokens of a batch; `_BT`: sequences by tokens, padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envrl.errors import UserError
from envrl.objective.aggregation import row_weights
from envrl.objective.checks import check_one_a_token
from envrl.objective.losses.common import TokenLoss, log_ratio
from envrl.registry import Entry, View, blame, check_settings

__all__ = [
    "LOSSES",
    "TOKEN_LOSSES",
    "TokenLoss",
    "entropy",
    "importance_ratio",
    "row_weights",
    "stale_importance",
    "truncated_importance",
]


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A registered policy loss, per token."""

    entry: Entry

    @property
    def looks_beforehand(self) -> bool:
        """True if it needs a number of each token that depends on all tokens of an optimiser step (`beforehand`)."""
        return "beforehand" in self.entry.traits

    def beforehand(
        self, logprobs_N: NDArray[np.float64], advantages_N: NDArray[np.float64], key: int = 0, **knobs: Any
    ) -> NDArray[np.float64]:
        """Return the number of each token of an optimiser step that the loss is given as `told_N`.

        `logprobs_N` are those from before the step, `key` seeds what is drawn. Raises `UserError` for an unknown knob.
        """
        check_settings(f"the {self.entry.called}", knobs, self.entry.settings)
        chosen = {name: each.default for name, each in self.entry.settings.items()} | knobs
        with blame(self.entry):
            told_N = np.asarray(self.entry.traits["beforehand"](logprobs_N, advantages_N, key, **chosen), dtype=float)
        if told_N.shape != advantages_N.shape:
            raise UserError(
                f"what the {self.entry.called} is told beforehand must be one number a token, {len(advantages_N)} in "
                f"all, not an array of shape {told_N.shape}"
            )
        return told_N

    def weight(
        self, logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, row_N: Tensor, **knobs: Any
    ) -> Tensor:
        """Return the importance weight that each token's loss has in it, without a gradient.

        It is the token's ratio, unless the loss has another one (`weight=` in `register`).
        """
        if "weight" not in self.entry.traits:
            return importance_ratio(logprobs_N, old_logprobs_N)
        chosen = {name: each.default for name, each in self.entry.settings.items()} | knobs
        with blame(self.entry):
            return self.entry.traits["weight"](logprobs_N, old_logprobs_N, advantages_N, row_N, **chosen)

    def __call__(
        self,
        logprobs_N: Tensor,
        old_logprobs_N: Tensor,
        advantages_N: Tensor,
        row_N: Tensor,
        told_N: Tensor | None = None,
        **knobs: Any,
    ) -> TokenLoss:
        """Return every token's loss; raise `UserError` for an unknown knob or a result of the wrong shape.

        `told_N` is what `beforehand` returned; left out, the tokens of this call are the whole step.
        """
        check_settings(f"the {self.entry.called}", knobs, self.entry.settings)
        tokens = [logprobs_N, old_logprobs_N, advantages_N, row_N]
        if self.looks_beforehand:
            if told_N is None:
                before_N, credit_N = (each.detach().double().cpu().numpy() for each in (old_logprobs_N, advantages_N))
                told_N = torch.from_numpy(self.beforehand(before_N, credit_N, **knobs)).to(logprobs_N)
            tokens.append(told_N)
        with blame(self.entry):
            loss = self.entry.target(*tokens, **knobs)
        if not isinstance(loss, TokenLoss):
            loss = TokenLoss(loss, logprobs_N.new_zeros(len(logprobs_N)).bool())
        check_one_a_token(f"the {self.entry.called}", loss.loss_N, logprobs_N)
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


def stale_importance(weights_N: Tensor, cap: float) -> Tensor:
    """Return min(1, cap / weight) of each token that an earlier policy sampled.

    The loss of such a token has an importance weight in it (`PolicyLoss.weight`): times this it is truncated at the
    cap.
    """
    return (cap / weights_N).clamp(max=1.0)


def importance_ratio(logprobs_N: Tensor, sampled_logprobs_N: Tensor) -> Tensor:
    """Return each token's exp(logprob − sampled), without a gradient."""
    return log_ratio(logprobs_N, sampled_logprobs_N).exp().detach()


def entropy(logprobs_NV: Tensor) -> Tensor:
    """Return the entropy −Σ p log p (nats) of each row of log-probabilities; −inf marks excluded tokens."""
    ruled_out_NV = logprobs_NV.isneginf()
    # filled before exp(), so that neither 0 · inf nor its gradient occurs
    filled_NV = logprobs_NV.masked_fill(ruled_out_NV, 0.0)
    return -(filled_NV.exp() * filled_NV).sum(-1)
