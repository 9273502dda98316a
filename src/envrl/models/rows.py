"""Hidden states of whole rows, for training: rows run as a tree if the model's layers allow it, else padded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from envrl.errors import UserError
from envrl.models.attention import TREE, LaidRows
from envrl.models.forward import row_states, vocabulary_size
from envrl.models.out_of_memory import is_out_of_memory
from envrl.models.rounding import most_roundings, rounded_anew, roundings_apart
from envrl.models.tree import Indices, Tree, tree_of
from envrl.types import IntArray


@dataclass(frozen=True, slots=True)
class RowStates:
    """Final hidden states (nodes or padded tokens, width); that of token t of row r is `nodes[starts[r] + t]`."""

    states: Tensor
    starts: Tensor
    nodes: Tensor

    def at(self, row_N: Tensor, token_N: Tensor) -> Tensor:
        """Return the states (n, width) of token `token_N[i]` of row `row_N[i]`."""
        return self.states[self.nodes[self.starts[row_N] + token_N]]


def states_of_rows(
    model: PreTrainedModel,
    rows: Sequence[IntArray],
    pad: int,
    *,
    asked: Sequence[IntArray] | None = None,
    checkpointing: bool = False,
) -> RowStates:
    """Return the hidden states of rows of token ids, each row independent of the others.

    Shared prefixes are run once if the model's layers allow it; then only the states of the `asked` tokens of each row
    are valid (default: all). With `checkpointing` the backward pass runs every layer again, and only the layers' inputs
    are kept until then.
    """
    tree = runs_as_tree(model) and not _hidden_by_window(model, max(map(len, rows)))
    laid = LaidRows.on(next(model.parameters()).device, tree_of(rows)) if tree else None
    nodes = asked_nodes(laid.tree, asked) if laid and asked is not None else None
    some = torch.from_numpy(nodes).to(laid.nodes.device) if laid and nodes is not None else None
    layers = partial(_tree_layers, model, laid, some) if laid else nullcontext
    with layers(), _recomputed_layers(model, layers) if checkpointing else nullcontext():
        return _as_tree(model, laid) if laid else _padded(model, rows, pad)


def token_wise_parts(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules of the last layer that act on each token alone, whose results no other token sees."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not layers:
        return []
    attention = getattr(layers[-1], "self_attn", None)
    named = [(layers[-1], ("mlp", "feed_forward")), (attention, ("q_proj", "o_proj", "out_proj"))]
    modules = [getattr(owner, name, None) for owner, names in named for name in names]
    return [part for part in modules if isinstance(part, nn.Module)]


def asked_nodes(tree: Tree, asked: Sequence[IntArray]) -> Indices | None:
    """Return the nodes of each row's asked tokens, or None if these are at least half: selecting has a cost too."""
    nodes = np.unique(np.concatenate([b.path[places] for b, places in zip(tree.branches, asked, strict=True)]))
    return nodes if 2 * len(nodes) < len(tree.ids) else None


def runs_as_tree(model: PreTrainedModel) -> bool:
    """Return whether rows can be run as a tree: tested once per model, with a few short rows in the current precision.

    A model with a layer that mixes tokens in an unknown way fails: its states differ by more than the rounding.
    """
    if model not in _TRIED:
        _TRIED[model] = _agrees(model)
    return _TRIED[model]


_TRIED: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.no_grad()
def _agrees(model: PreTrainedModel) -> bool:
    generator = np.random.default_rng(0)
    first, *rows = (generator.integers(vocabulary_size(model), size=size, dtype=np.int32) for size in (11, 7, 7, 3))
    # A fork after one token and one after six, a row that is a prefix of another, and a row that shares nothing.
    rows += [first, np.concatenate([first[:6], rows[0]]), np.concatenate([first[:1], rows[1]]), first[:4]]
    device = next(model.parameters()).device
    laid = LaidRows.on(device, tree_of(rows))
    try:
        with _tree_layers(model, laid, torch.arange(0, len(laid.tree.ids), 2, device=device)):
            some = _as_tree(model, laid)
        with _tree_layers(model, laid, None):
            every = _as_tree(model, laid)
    except (TypeError, AttributeError, RuntimeError, ValueError, KeyError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        return False
    padded = _padded(model, rows, 0)
    with rounded_anew(model):
        padded_anew = _padded(model, rows, 0)
    row_N = torch.from_numpy(np.repeat(np.arange(len(rows)), list(map(len, rows)))).to(device)
    token_N = torch.from_numpy(np.concatenate([np.arange(len(row)) for row in rows])).to(device)
    found, found_some, expected, anew = (each.at(row_N, token_N) for each in (every, some, padded, padded_anew))
    asked = laid.nodes % 2 == 0
    apart = roundings_apart([found, found_some[asked]], [expected, expected[asked]], [anew, anew[asked]])
    return apart <= most_roundings(model)


def _padded(model: PreTrainedModel, rows: Sequence[IntArray], pad: int) -> RowStates:
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    device = next(model.parameters()).device
    states = row_states(model, torch.from_numpy(ids).to(device)).flatten(0, 1)
    places = torch.arange(len(states), device=device)
    return RowStates(states, places[::longest], places)


def _as_tree(model: PreTrainedModel, rows: LaidRows) -> RowStates:
    tree, device = rows.tree, rows.nodes.device
    ids, positions = (torch.from_numpy(each)[None].to(device) for each in (tree.ids, tree.positions))
    decoder = cast(nn.Module, model.get_decoder())
    states = decoder(input_ids=ids, position_ids=positions, use_cache=False, rows=rows).last_hidden_state[0]
    return RowStates(states, rows.bounds[:-1].long(), rows.nodes)


@contextmanager
def _tree_layers(model: PreTrainedModel, rows: LaidRows, asked: Tensor | None) -> Iterator[None]:
    """Make attention and short convolutions follow these rows in the block; attention gets them as an argument.

    If nodes are `asked` for, the token-wise parts of the last layer compute only those.
    """
    convolutions = [layer for layer in model.modules() if type(layer).__name__.endswith("ShortConv")]
    parts: list[nn.Module] = []
    for layer in convolutions:
        layer.forward = partial(_short_convolution, layer, rows)
    if asked is not None:
        parts = token_wise_parts(model)
        for part in parts:
            part.forward = partial(_of_nodes, part.forward, asked)
    try:
        with _attention(model, TREE):
            yield
    finally:
        for layer in (*convolutions, *parts):
            del layer.forward


def _of_nodes(whole: Callable[[Tensor], Tensor], nodes: Tensor, states: Tensor) -> Tensor:
    """Apply a module to these nodes of states (1, nodes, width); the result is 0 for the others."""
    result = whole(states[:, nodes])
    return result.new_zeros(1, states.shape[1], result.shape[2]).index_copy(1, nodes, result)


def _short_convolution(layer: Any, laid: LaidRows, hidden_states: Tensor, **_: Any) -> Tensor:
    """Return LFM2's C ∘ conv(B ∘ x) of nodes (1, nodes, width), over the last tokens of each node's own row."""
    before, after, x = layer.in_proj(hidden_states[0]).chunk(3, dim=-1)
    inputs = before * x
    padded = torch.cat([inputs, inputs.new_zeros(1, inputs.shape[1])])
    kernel = cast(Tensor, layer.conv.weight)[:, 0].to(inputs.dtype)
    result = inputs * kernel[:, -1]
    for distance in range(1, kernel.shape[1]):
        result = result + padded[laid.before(distance)] * kernel[:, -1 - distance]
    if layer.conv.bias is not None:
        result = result + layer.conv.bias
    return layer.out_proj(after * result)[None]


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    own = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = own


@contextmanager
def _recomputed_layers(model: PreTrainedModel, context: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Recompute each layer's forward pass in the backward pass, inside the same context as the first one.

    The network's own gradient checkpointing works only in training mode, which would also enable dropout.
    """
    layers = [
        layer
        for layer in cast(nn.Module, model.get_decoder()).modules()
        if isinstance(layer, GradientCheckpointingLayer)
    ]
    if not layers:
        raise UserError(
            f"models of type '{model.config.model_type}' have no layers that can be run again; set "
            "train.checkpointing = false"
        )
    again = partial(
        checkpoint,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), context()),
    )
    for layer in layers:
        layer.forward = partial(again, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _hidden_by_window(model: PreTrainedModel, longest: int) -> bool:
    """Return whether a sliding window may hide a part of a row of this length."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is not None and longest > window
