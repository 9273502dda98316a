"""What a regularizer sees of the policy's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # a recipe's settings are read from signatures, without torch
    from torch import Tensor


class PolicyTokens(NamedTuple):
    """The policy tokens of some whole rows, end to end, with their gradients.

    Log-probs and entropies are those of the (restricted) distribution at the temperature of sampling, in nats; `row_N`
    is the row of each token, counted from 0.
    """

    logprobs_N: Tensor
    entropies_N: Tensor
    row_N: Tensor


def row_means(values_N: Tensor, row_N: Tensor) -> Tensor:
    """Return the mean over its row of each token's value."""
    rows = int(row_N.max()) + 1 if row_N.numel() else 0
    counts_R = values_N.new_zeros(rows).index_add(0, row_N, values_N.new_ones(len(values_N)))
    sums_R = values_N.new_zeros(rows).index_add(0, row_N, values_N)
    return (sums_R / counts_R.clamp(min=1.0))[row_N]
