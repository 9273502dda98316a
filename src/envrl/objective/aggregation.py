"""Aggregation of token losses: loss = Σ_rows Σ_tokens weight · ℓ / Σ_rows share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envrl.errors import UserError
from envrl.objective.checks import check_choice

AGGREGATIONS = ("token_mean", "sequence_mean", "constant")


def row_weights(
    counts: Sequence[int], aggregation: str, constant: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each row's (weight of a token, share of the denominator), given its number of counted tokens.

    token_mean: 1 and the count, so all tokens weigh the same (DAPO, arXiv 2503.14476). sequence_mean: 1/count and 1, so
    all rows weigh the same (DeepSeekMath, arXiv 2402.03300). constant: 1 and the constant, the most tokens of a row
    (Dr.GRPO, arXiv 2503.20783). A row without counted tokens has weight and share 0. Raises `UserError` for an unknown
    aggregation and for "constant" without a positive constant.
    """
    check_choice("aggregation of the loss", "aggregation", aggregation, AGGREGATIONS)
    counts_R = np.asarray(counts, dtype=np.float64)
    counted_R = (counts_R > 0).astype(np.float64)
    if aggregation == "token_mean":
        return counted_R, counts_R
    if aggregation == "sequence_mean":
        return counted_R / np.maximum(counts_R, 1.0), counted_R
    if constant is None or not constant > 0:
        raise UserError(f"aggregation='constant' needs constant=<most tokens of a sequence>, above 0, not {constant!r}")
    return counted_R, counted_R * float(constant)
