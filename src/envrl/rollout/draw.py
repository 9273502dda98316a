"""Sample tokens from rows of log-probs, under top-k and top-p."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envrl.models.devices import sent

Choices = tuple[int, ...] | None
"""The ids that a token may be sampled from; None: the whole vocabulary."""

_NONE = -1e29
"""Log-probs below this value belong to padding."""


def top_choices(logprobs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return a mask (n, choices) of the fewest choices that hold `top_p`, of the `top_k` most likely (0: all).

    Top-p counts probability renormalised after top-k. The most likely choice always stays (Holtzman et al., ICLR 2020).
    """
    if top_k:
        values, order = logprobs.topk(min(top_k, logprobs.shape[1]), dim=-1)
    else:
        values, order = logprobs.sort(dim=-1, descending=True, stable=True)
    probabilities = values.double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    stays = (values > _NONE) & ((before < top_p) if top_p < 1 else True)
    return torch.zeros_like(logprobs, dtype=torch.bool).scatter_(1, order, stays)


def renormalised(logprobs: Tensor, stays: Tensor) -> Tensor:
    """Return the log-probs (n, choices), renormalised over the choices that stay."""
    return logprobs.masked_fill(~stays, 10 * _NONE).log_softmax(-1)


def choose(logprobs: Tensor, numbers: NDArray[np.float64]) -> Tensor:
    """Return each row's sampled choice (n,), by inverse transform of its number in [0, 1) in the choices' order."""
    last = logprobs.shape[1] - 1 - (logprobs > _NONE).flip(-1).int().argmax(-1)
    cumulative = logprobs.to(torch.float64, copy=True).exp_().cumsum_(-1)
    targets = sent(numbers, logprobs.device)[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    return torch.minimum(index, last)


def sampled_tokens(index: Tensor, logprobs: Tensor, ids: Tensor | None) -> tuple[list[int], list[float]]:
    """Return the tokens of sampled choices (n,) and their log-probs; `ids` is the result of `padded`.

    One copy brings both to the CPU, exactly, as doubles. Only here and in
    `remaining_choices` does the program wait for a GPU.
    """
    tokens = index if ids is None else ids.gather(1, index[:, None])[:, 0]
    both = torch.stack([tokens.double(), logprobs.gather(1, index[:, None])[:, 0].double()]).tolist()
    return [int(token) for token in both[0]], both[1]


def padded(choices: list[Choices], logits: Tensor) -> Tensor | None:
    """Return each row's choices (n, most choices), padded with -1; None if every row has the whole vocabulary."""
    vocabulary = logits.shape[1]
    if all(choice is None for choice in choices):
        return None
    lengths = [vocabulary if choice is None else len(choice) for choice in choices]
    ids = np.full((len(choices), max(lengths)), -1, dtype=np.int64)
    for row, (choice, length) in enumerate(zip(choices, lengths, strict=True)):
        ids[row, :length] = np.arange(vocabulary) if choice is None else choice
    return sent(ids, logits.device)


def remaining_choices(choices: list[Choices], stays: Tensor, ids: Tensor | None) -> list[Choices]:
    """Return each row's choices that stay; `ids` is the result of `padded`."""
    rows, columns = (part.cpu().numpy() for part in stays.nonzero(as_tuple=True))
    tokens = columns if ids is None else ids.cpu().numpy()[rows, columns]
    ends = np.searchsorted(rows, np.arange(1, len(choices)))
    return [
        None if choice is None and len(left) == stays.shape[1] else tuple(left.tolist())
        for choice, left in zip(choices, np.split(tokens, ends), strict=True)
    ]
