"""Log-probs and entropies of tokens from hidden states; the logits of a large vocabulary are computed in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from envrl.models.forward import log_softmax_and_entropy, logit_cap, logits_of, restricted_logits, soft_capped
from envrl.types import Ragged

CHUNK = 1 << 27
"""Most logits of one chunk: 883 tokens with a vocabulary of 151,936, half a GiB in fp32.

Larger chunks gain little; smaller ones add up the gradient of the whole output matrix more often.
"""
KEPT = CHUNK // 8
"""Most logits that are kept for the backward pass; more are computed twice."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Log-probs (n,) and entropies (n,) of tokens, in nats."""

    logprobs: Tensor
    entropies: Tensor


def score_tokens(
    model: PreTrainedModel,
    states: Tensor,
    targets: Tensor,
    allowed: Ragged | None = None,
    temperature: float = 1.0,
    *,
    bf16: bool = False,
) -> TokenScores:
    """Return the scores of target ids (n,) given the hidden states (n, width) before them, at a temperature.

    `allowed` holds the ids that each target was sampled from, an empty list for the whole vocabulary. Many logits are
    computed in chunks, and again in the backward pass. `bf16` rounds the operands of the products with the output
    matrix; sums and logits stay fp32 (only CUDA has such a product).
    """
    head = _head(model)
    if bf16 or targets.numel() * head.weight.shape[0] > KEPT:
        cap = logit_cap(model)
        return TokenScores(*_InChunks.apply(states, head.weight, head.bias, targets, allowed, temperature, bf16, cap))
    return TokenScores(*_score(logits_of(model, states), targets, allowed, temperature))


@torch.no_grad()
def logits_in_chunks(model: PreTrainedModel, states: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (slice, logits) of successive chunks of the hidden states (n, width), without gradients."""
    for part in _parts(states.shape[0], _head(model).weight.shape[0]):
        yield part, logits_of(model, states[part])


def _head(model: PreTrainedModel) -> nn.Linear:
    return cast(nn.Linear, model.get_output_embeddings())


def _parts(tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK // vocabulary)
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _score(
    logits: Tensor, targets: Tensor, allowed: Ragged | None, temperature: float, part: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Return the log-probs and entropies of targets (n,) from logits (n, vocabulary); `part` selects from `allowed`."""
    logits = logits / temperature
    padded = None if allowed is None else _padded(allowed, part, logits.shape[1])
    if padded is None:
        logprobs, entropies = log_softmax_and_entropy(logits)
        return logprobs.gather(1, targets[:, None])[:, 0], entropies
    ids = torch.from_numpy(padded).to(logits.device)
    logprobs, entropies = log_softmax_and_entropy(restricted_logits(logits, ids))
    column = (ids == targets[:, None]).int().argmax(1, keepdim=True)
    return logprobs.gather(1, column)[:, 0], entropies


def _padded(allowed: Ragged, part: slice, vocabulary: int) -> np.ndarray | None:
    """Return the allowed ids (tokens, most choices), padded with -1; None if no token is restricted."""
    counts = np.diff(allowed.offsets)[part]
    if not counts.any():
        return None
    first = int(allowed.offsets[:-1][part][0])
    free = counts == 0
    columns = np.arange(vocabulary if free.any() else int(counts.max()))
    padded = np.full((len(counts), len(columns)), -1, dtype=np.int64)
    padded[columns < counts[:, None]] = allowed.values[first : first + int(counts.sum())]
    padded[free] = columns
    return padded


def _product(left: Tensor, right: Tensor, bf16: bool) -> Tensor:
    """Return left @ right at least in fp32, with operands rounded to bf16 if asked for."""
    if bf16:
        return torch.mm(left.bfloat16(), right.bfloat16(), out_dtype=torch.float32)
    product = left @ right
    return product.to(torch.promote_types(product.dtype, torch.float32))


class _InChunks(torch.autograd.Function):
    """Scores from logits that are computed chunk by chunk, in the forward pass and again in the backward pass.

    The gradient of the output matrix accumulates in one buffer; `torch.utils.checkpoint` would allocate it per chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        allowed: Ragged | None,
        temperature: float,
        bf16: bool,
        cap: float | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(states, weight, bias, targets)
        ctx.rest = allowed, temperature, bf16, cap
        matrix = weight.bfloat16() if bf16 else weight
        scores = [
            _score(
                *(soft_capped(_logits(states[part], matrix, bias, bf16), cap), targets[part]),
                *(allowed, temperature, part),
            )
            for part in _parts(len(targets), len(weight))
        ]
        return torch.cat([logprobs for logprobs, _ in scores]), torch.cat([entropies for _, entropies in scores])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets = ctx.saved_tensors
        allowed, temperature, bf16, cap = ctx.rest
        matrix = weight.bfloat16() if bf16 else weight
        states_grad = torch.zeros_like(states)
        weight_grad = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        bias_grad = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for part in _parts(len(targets), len(weight)):
            logits = _logits(states[part], matrix, bias, bf16).requires_grad_()
            with torch.enable_grad():
                scores = _score(soft_capped(logits, cap), targets[part], allowed, temperature, part)
            (grad,) = torch.autograd.grad(scores, logits, [each[part] for each in grad_outputs])
            del logits, scores
            states_grad[part] = _product(grad, matrix, bf16)
            if weight_grad is not None:
                weight_grad += _product(grad.T, states[part], bf16)
            if bias_grad is not None:
                bias_grad += grad.sum(0)
        return states_grad, weight_grad, bias_grad, None, None, None, None, None


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None, bf16: bool) -> Tensor:
    logits = _product(states, weight.T, bf16)
    return logits if bias is None else logits + bias
