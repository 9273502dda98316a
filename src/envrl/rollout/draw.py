"""Drawing tokens from rows of log-probs: which ones stay under top-k and top-p, and which one a number falls on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NONE = -1e29
"""Log-probs below are those of padding."""


def kept(logprobs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return which choices (n, choices) stay: of the `top_k` most likely (0: all) the fewest that hold `top_p`.

    Mass is counted after top-k has renormalised; the most likely choice always stays (Holtzman et al., ICLR 2020).
    """
    if top_k:
        values, order = logprobs.topk(min(top_k, logprobs.shape[1]), dim=-1)
    else:
        values, order = logprobs.sort(dim=-1, descending=True, stable=True)
    probabilities = values.double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    stays = (values > _NONE) & ((before < top_p) if top_p < 1 else True)
    return torch.zeros_like(logprobs, dtype=torch.bool).scatter_(1, order, stays)


def narrowed(logprobs: Tensor, stays: Tensor) -> Tensor:
    """Return the log-probs (n, choices) of the distributions over the choices that stay."""
    return logprobs.masked_fill(~stays, 10 * _NONE).log_softmax(-1)


def choose(logprobs: Tensor, numbers: NDArray[np.float64]) -> Tensor:
    """Return the choice (n,) that each row's number in [0, 1) falls on, by inverse transform in the choices' order."""
    cumulative = logprobs.double().exp().cumsum(-1)
    targets = torch.from_numpy(numbers).to(logprobs.device)[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    last = logprobs.shape[1] - 1 - (logprobs > _NONE).flip(-1).int().argmax(-1)
    return torch.minimum(index, last)
