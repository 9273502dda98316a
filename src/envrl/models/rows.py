"""Hidden states of whole rows, for training: rows laid end to end where a model's layers allow it, else padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, groupby
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from envrl.errors import UserError
from envrl.models.forward import row_states, vocabulary_size
from envrl.types import IntArray


@dataclass(frozen=True, slots=True)
class RowStates:
    """Last hidden states (tokens of all rows and any padding, width); token t of row r is at `starts[r] + t`."""

    states: Tensor
    starts: Tensor

    def at(self, row_N: Tensor, token_N: Tensor) -> Tensor:
        """Return the states (n, width) of these tokens of these rows."""
        return self.states[self.starts[row_N] + token_N]


def states_of_rows(
    model: PreTrainedModel, rows: Sequence[IntArray], pad: int, *, checkpointing: bool = False
) -> RowStates:
    """Return the hidden states of rows of token ids, each seen by itself.

    With `checkpointing` the backward pass runs every layer again, and only what enters the layers is kept until then.
    """
    packed = packs(model) and not _hidden_by_window(model, max(map(len, rows)))
    attention = _PACKED if packed else str(model.config._attn_implementation)
    with _recomputed_layers(model, attention) if checkpointing else nullcontext(), _attention(model, attention):
        return _end_to_end(model, rows) if packed else _padded(model, rows, pad)


def packs(model: PreTrainedModel) -> bool:
    """Return whether rows can be laid end to end: tried once, with a few short ones, in the present precision.

    A layer that mixes neighbours otherwise than by attention (a convolution) fails it by its numbers.
    """
    if model not in _PACKS:
        _PACKS[model] = _agrees(model)
    return _PACKS[model]


_PACKS: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.no_grad()
def _agrees(model: PreTrainedModel) -> bool:
    generator = np.random.default_rng(0)
    rows = [generator.integers(vocabulary_size(model), size=size, dtype=np.int32) for size in (11, 7, 7, 3)]
    weight = next(model.parameters())
    exact = weight.dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)
    padded = _padded(model, rows, 0)
    try:
        with _attention(model, _PACKED):
            found = _end_to_end(model, rows)
    except (TypeError, AttributeError, RuntimeError, ValueError, KeyError, IndexError):
        return False
    row_N = torch.from_numpy(np.repeat(np.arange(len(rows)), list(map(len, rows)))).to(weight.device)
    token_N = torch.from_numpy(np.concatenate([np.arange(len(row)) for row in rows])).to(weight.device)
    expected = padded.at(row_N, token_N)
    gap = (found.at(row_N, token_N) - expected).abs().max()
    return bool(gap <= (1e-4 if exact else 0.05) * expected.abs().max())


def _padded(model: PreTrainedModel, rows: Sequence[IntArray], pad: int) -> RowStates:
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), pad, dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    device = next(model.parameters()).device
    states = row_states(model, torch.from_numpy(ids).to(device))
    return RowStates(states.flatten(0, 1), torch.arange(len(rows), device=device) * longest)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The lengths of rows laid end to end; `bounds` (rows + 1) are where each begins and the last one ends."""

    lengths: tuple[int, ...]
    bounds: Tensor


def _end_to_end(model: PreTrainedModel, rows: Sequence[IntArray]) -> RowStates:
    device = next(model.parameters()).device
    lengths = tuple(map(len, rows))
    bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    ids = torch.from_numpy(np.concatenate(rows).astype(np.int64))[None].to(device)
    positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None].to(device)
    decoder = cast(nn.Module, model.get_decoder())
    states = decoder(input_ids=ids, position_ids=positions, use_cache=False, rows=_Rows(lengths, bounds))
    return RowStates(states.last_hidden_state[0], bounds[:-1].long())


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: _Rows,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend causally inside each row; query (1, heads, tokens, size), key and value with as many heads or fewer.

    Raises `ValueError` for what a layer wants beyond that: with small numbers a cap on scores would go unnoticed.
    """
    if any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise ValueError("this layer's attention is not plain")
    low = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    if query.is_cuda and low in (torch.bfloat16, torch.float16):
        return _varlen(query.to(low), key.to(low), value.to(low), rows, scaling), None
    found, start = [], 0
    for length, equal in groupby(rows.lengths):
        count = len(list(equal))
        part = slice(start, start + count * length)
        start = part.stop
        q, k, v = (each[0, :, part].unflatten(1, (count, length)).transpose(0, 1) for each in (query, key, value))
        grouped = q.shape[1] != k.shape[1]
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        found.append(seen.transpose(1, 2).flatten(0, 1))
    return torch.cat(found)[None], None


def _varlen(query: Tensor, key: Tensor, value: Tensor, rows: _Rows, scaling: float | None) -> Tensor:
    """Attend by torch's own kernel for rows of different lengths, which exists for CUDA in half precision."""
    from torch.nn.attention.varlen import varlen_attn

    longest, groups = max(rows.lengths), query.shape[1] // key.shape[1]
    # Repeated heads cost little here, and torch 2.11 cannot do without.
    q, k, v = (
        each[0].repeat_interleave(times, dim=0).transpose(0, 1)
        for each, times in ((query, 1), (key, groups), (value, groups))
    )
    found = varlen_attn(q, k, v, rows.bounds, rows.bounds, longest, longest, scale=scaling, window_size=(-1, 0))
    return cast(Tensor, found)[None]


_PACKED = "envrl_packed"
ALL_ATTENTION_FUNCTIONS.register(_PACKED, _packed_attention)


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    own = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = own


@contextmanager
def _recomputed_layers(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Have each layer's forward pass run again in the backward pass, with the same kind of attention.

    The network's own switch acts in training mode alone, which would switch dropout on as well.
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
        context_fn=lambda: (nullcontext(), _attention(model, attention)),
    )
    for layer in layers:
        layer.forward = partial(again, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _hidden_by_window(model: PreTrainedModel, longest: int) -> bool:
    """Return whether some layer may see less than all of a row so long."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is not None and longest > window
