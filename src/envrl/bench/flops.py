"""Floating-point operations of an update, from the network's matrices and the rows' lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from envrl.costs.operations import Flops, Products, pass_flops
from envrl.engine.update import asked_tokens
from envrl.models.rows import asked_nodes, token_wise_parts
from envrl.models.tree import tree_of
from envrl.samples.packing import shared_lengths
from envrl.types import Row


def row_flops(network: PreTrainedModel, rows: Sequence[Row], shared: Sequence[int] | None = None) -> Flops:
    """Return what rows take: padding and tokens whose logits nothing asks for do not count.

    Nor do the first `shared` tokens of each row, where those are run for another one.
    """
    lengths = np.array([len(row.token_ids) for row in rows], dtype=np.float64)
    known = np.zeros(len(rows)) if shared is None else np.array(shared, dtype=np.float64)
    scored = sum(len(term.positions_T) for row in rows for term in row.terms)
    squares = float((lengths**2 - known**2).sum())
    return pass_flops(products_in(network), float((lengths - known).sum()), squares, scored)


def batch_flops(network: PreTrainedModel, batches: Sequence[Sequence[Row]], *, padded: bool) -> Flops:
    """Return what micro-batches take, each of them as `row_flops` counts it.

    In a tree what rows share counts once, and what the last layer leaves out for tokens without a loss not at all.
    """
    found = [row_flops(network, batch, None if padded else shared_lengths(batch)) for batch in batches]
    total = Flops(sum(f.forward for f in found), sum(f.both for f in found), sum(f.again for f in found))
    if padded:
        return total
    weights = [p for part in token_wise_parts(network) for p in part.parameters() if p.ndim == 2]
    trained = sum(p.numel() for p in weights if p.requires_grad)
    less = float(sum(map(_unasked, batches)))
    forward = 2 * less * sum(p.numel() for p in weights)
    both = 2 * forward + 2 * less * trained
    return Flops(total.forward - forward, total.both - both, total.again - both - forward)


def _unasked(batch: Sequence[Row]) -> int:
    """Return the nodes of a micro-batch for which the last layer is not run whole."""
    tree = tree_of([row.token_ids for row in batch])
    nodes = asked_nodes(tree, asked_tokens(batch))
    return 0 if nodes is None else len(tree.ids) - len(nodes)


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
