"""Floating-point operations of an update, from the network's matrices and the rows' lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from envrl.costs.operations import Flops, Products, pass_flops
from envrl.types import Row


def row_flops(network: PreTrainedModel, rows: Sequence[Row]) -> Flops:
    """Return what rows take: padding and tokens whose logits nothing asks for do not count."""
    lengths = np.array([len(row.token_ids) for row in rows], dtype=np.float64)
    scored = sum(len(term.positions_T) for row in rows for term in row.terms)
    return pass_flops(products_in(network), float(lengths.sum()), float((lengths**2).sum()), scored)


def products_in(network: PreTrainedModel) -> Products:
    """Return the products of a network as it is, adapters included."""
    config = network.config.get_text_config()
    embedding = cast(nn.Embedding, network.get_input_embeddings()).weight
    head = cast(nn.Linear, network.get_output_embeddings()).weight
    layers = [p for p in network.parameters() if p.ndim == 2 and p is not embedding and p is not head]
    trained = sum(p.numel() for p in layers if p.requires_grad)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attended = kinds.count("full_attention") * config.num_attention_heads * size
    return Products(sum(p.numel() for p in layers), trained, head.numel(), head.requires_grad, attended)
