"""Floating-point operations of an update, from the network's matrices and the rows' lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from envrl.types import Row


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one pass over rows: `forward`, `both` passes, and `again` with every layer's forward run twice."""

    forward: float
    both: float
    again: float


def row_flops(network: PreTrainedModel, rows: Sequence[Row]) -> Flops:
    """Return what rows take: padding and tokens whose logits nothing asks for do not count.

    forward = 2 · N · tokens + 4 · layers · width · Σ T² / 2 + 2 · vocabulary · hidden · scored tokens, with N the
    parameters of the layers' matrices and attention causal over rows of T tokens. The backward pass takes as much for
    the gradients of what entered a product, and as much again for those of trained matrices: 6 · N a token in all.
    """
    config = network.config.get_text_config()
    embedding = cast(nn.Embedding, network.get_input_embeddings()).weight
    head = cast(nn.Linear, network.get_output_embeddings()).weight
    layers = [p for p in network.parameters() if p.ndim == 2 and p is not embedding and p is not head]
    all_of_them = sum(p.numel() for p in layers)
    trained = sum(p.numel() for p in layers if p.requires_grad)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    lengths = np.array([len(row.token_ids) for row in rows], dtype=np.float64)
    scored = sum(len(term.positions_T) for row in rows for term in row.terms)
    tokens = float(lengths.sum())
    attention = 2 * kinds.count("full_attention") * config.num_attention_heads * size * float((lengths**2).sum())
    logits = 2.0 * head.numel() * scored
    body = 2 * all_of_them * tokens + attention
    both = 2 * body + attention + 2 * trained * tokens + logits * (3 if head.requires_grad else 2)
    return Flops(body + logits, both, both + body)
