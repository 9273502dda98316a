"""The loss of auxiliary rows: next-token cross-entropy on the tokens that are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from envrl.stacks.rows import AuxiliaryRow


class RowBatch(NamedTuple):
    """Rows in tensors, padded on the right: ids and masks (B, T), weights (B)."""

    input_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor
    weights: Tensor


def collate(rows: Sequence[AuxiliaryRow], pad: int = 0, device: torch.device | str = "cpu") -> RowBatch:
    """Return rows in tensors on a device, filled up with the id `pad`."""
    length = max(len(row.token_ids) for row in rows)

    def filled(lists: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[*each, *([fill] * (length - len(each)))] for each in lists], device=device)

    ids, masks = [row.token_ids for row in rows], [row.loss_mask for row in rows]
    present = filled([[1] * len(each) for each in ids], 0)
    weights = torch.tensor([row.weight for row in rows], device=device)
    return RowBatch(filled(ids, pad), present, filled(masks, 0), weights)


def predicted(rows: Sequence[AuxiliaryRow]) -> int:
    """Return the number of tokens that rows predict: the denominator N of their loss."""
    return sum(sum(row.loss_mask) for row in rows)


def auxiliary_loss(logits_BTV: Tensor, batch: RowBatch, denominator: float | None = None) -> Tensor:
    """Return L = − Σ_b w_b Σ_t m_bt log softmax(logits_b,t−1)[x_bt] / N, in nats a token (EnvRL, arXiv 2606.17680).

    N is Σ m of these rows, or a `denominator` of all rows of an optimiser step, so that the parts of several passes
    add up. Log-probs are in fp32, or in fp64 if the logits are.
    """
    logits_BTV = logits_BTV[:, :-1]
    logits_BTV = logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
    logprobs_BT = logits_BTV.log_softmax(-1).gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    mask_BT = batch.loss_mask[:, 1:]
    total = (batch.weights[:, None] * mask_BT * logprobs_BT).sum()
    return -total / (mask_BT.sum() if denominator is None else denominator)
