"""Floating-point operations of an update, calculated from the network's matrices and the rows' lengths."""

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
    """Return the FLOPs of rows, without padding and without the logits of tokens that have no loss.

    The first `shared` tokens of each row do not count either: they are run for another row.
    """
    lengths = np.array([len(row.token_ids) for row in rows], dtype=np.float64)
    known = np.zeros(len(rows)) if shared is None else np.array(shared, dtype=np.float64)
    scored = sum(len(term.positions_T) for row in rows for term in row.terms)
    squares = float((lengths**2 - known**2).sum())
    return pass_flops(products_in(network), float((lengths - known).sum()), squares, scored)


def batch_flops(network: PreTrainedModel, batches: Sequence[Sequence[Row]], *, padded: bool) -> Flops:
    """Return the FLOPs of micro-batches, each counted by `row_flops`.

    In a tree, shared prefixes count once, and the parts of the last layer that skip tokens without a loss do not count.
    """
    each = [row_flops(network, batch, None if padded else shared_lengths(batch)) for batch in batches]
    total = Flops(sum(f.forward for f in each), sum(f.both for f in each), sum(f.again for f in each))
    if padded:
        return total
    weights = [p for part in token_wise_parts(network) for p in part.parameters() if p.ndim == 2]
    trained = sum(p.numel() for p in weights if p.requires_grad)
    less = float(sum(map(_unasked, batches)))
    forward = 2 * less * sum(p.numel() for p in weights)
    both = 2 * forward + 2 * less * trained
    return Flops(total.forward - forward, total.both - both, total.again - both - forward)


def _unasked(batch: Sequence[Row]) -> int:
    """Return the number of nodes of a micro-batch that skip a part of the last layer."""
    tree = tree_of([row.token_ids for row in batch])
    nodes = asked_nodes(tree, asked_tokens(batch))
    return 0 if nodes is None else len(tree.ids) - len(nodes)


def products_in(network: PreTrainedModel) -> Products:
    """Return the matrix products of a network, including adapters."""
    config = network.config.get_text_config()
    embedding = cast(nn.Embedding, network.get_input_embeddings()).weight
    head = cast(nn.Linear, network.get_output_embeddings()).weight
    layers = [p for p in network.parameters() if p.ndim == 2 and p is not embedding and p is not head]
    trained = sum(p.numel() for p in layers if p.requires_grad)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attended = kinds.count("full_attention") * config.num_attention_heads * size
    return Products(sum(p.numel() for p in layers), trained, head.numel(), head.requires_grad, attended)
