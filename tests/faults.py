"""Mistakes that a cache, its masks or its positions could have: each takes the place of what is right for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from envrl.models import forward
from envrl.models.slots import SlotCache

_BEGIN, _WINDOWED, _UPDATE = SlotCache.begin, SlotCache.windowed, SlotCache.update
_UPDATE_CONV, _COMMIT, _COPY = SlotCache.update_conv_state, SlotCache.commit, SlotCache.copy
_GROUPED = forward._grouped_attention
_MASKS, _SLOT_BY_SLOT = forward._masks, forward._slot_by_slot


def _later_chunks_are_shifted(cache: SlotCache, counts: Tensor, width: int, slots: Any = None, room: Any = None) -> Any:
    late = (cache.lengths if slots is None else cache.lengths[slots]) > 0
    positions, mask = _BEGIN(cache, counts, width, slots, room)
    return positions + late[:, None].long(), mask


def _chunks_begin_at_zero(cache: SlotCache, counts: Tensor, width: int, slots: Any = None, room: Any = None) -> Any:
    positions, mask = _BEGIN(cache, counts, width, slots, room)
    return torch.arange(width).expand_as(positions), mask


def _last_key_before_a_chunk_is_hidden(cache: SlotCache, *given: Any) -> Any:
    positions, mask = _BEGIN(cache, *given)
    before = torch.arange(mask.shape[-1]) == cache._positions[:, :1] - 1
    return positions, mask.masked_fill(before[:, None, None], -torch.inf)


def _first_key_is_hidden(cache: SlotCache, *given: Any) -> Any:
    positions, mask = _BEGIN(cache, *given)
    first = (torch.arange(mask.shape[-1]) == 0)[None, None] & (cache._positions > 0)[:, :, None]
    return positions, mask.masked_fill(first[:, None], -torch.inf)


def _next_token_is_seen(cache: SlotCache, *given: Any) -> Any:
    positions, mask = _BEGIN(cache, *given)
    following = torch.arange(mask.shape[-1])[None, None] == cache._positions[:, :, None] + 1
    return positions, mask.masked_fill(following[:, None], 0.0)


def _slots_are_swapped(cache: SlotCache, keys: Tensor, values: Tensor, layer: int, *given: Any, **named: Any) -> Any:
    return _UPDATE(cache, keys.flip(0), values, layer, *given, **named)


def _some_slots_are_taken_for_the_first_ones(
    cache: SlotCache, keys: Tensor, values: Tensor, layer: int, *given: Any, **named: Any
) -> tuple[Tensor, Tensor]:
    _UPDATE(cache, keys, values, layer, *given, **named)
    seen = (store[layer][: len(keys), :, : cache._visible] for store in (cache._keys, cache._values))
    first, second = seen
    return first, second


def _states_are_stale(cache: SlotCache, inputs: Tensor, layer: int, **named: Any) -> Tensor:
    before = cache._states[layer].clone() if layer in cache._states else None
    joined = _UPDATE_CONV(cache, inputs, layer, **named)
    if before is not None:
        cache._states[layer].copy_(before)
    return joined


def _states_count_padding(cache: SlotCache, inputs: Tensor, layer: int, **named: Any) -> Tensor:
    own, cache._counts = cache._counts, torch.full_like(cache._counts, inputs.shape[2])
    joined = _UPDATE_CONV(cache, inputs, layer, **named)
    cache._counts = own
    return joined


def _states_are_never_cleared(cache: SlotCache, slots: Tensor) -> None:
    cache.lengths[slots] = 0


def _first_value_is_forgotten(cache: SlotCache) -> None:
    _COMMIT(cache)
    for store in cache._values.values():
        store[:, :, 0] = 0.0


def _lengths_are_a_token_short(cache: SlotCache) -> None:
    _COMMIT(cache)
    cache.lengths[cache.lengths > 4] -= 1


def _the_last_token_is_not_copied(cache: SlotCache, sources: Tensor, targets: Tensor, count: Any = None) -> None:
    _COPY(cache, sources, targets, count)
    for store in (cache._keys, cache._values):
        for kept in store.values():
            kept[targets, :, int(cache.lengths[targets].max()) - 1] = 0.0


def _heads_have_others_keys(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **named: Any) -> Any:
    return _GROUPED(module, query, key.roll(1, dims=1), value.roll(1, dims=1), mask, **named)


def _caps_are_left_out(module: Any, *given: Any, softcap: Any = None, **named: Any) -> Any:
    return _GROUPED(module, *given, **named)


def _scores_are_scaled_by_width(
    module: Any, query: Tensor, *given: Any, scaling: float, softcap: Any = None, **named: Any
) -> Any:
    return _GROUPED(module, query, *given, scaling=1.1 * scaling, softcap=softcap, **named)


def _last_tokens_of_wide_chunks_miss_themselves(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, ends: Sequence[tuple[int, int]]
) -> Tensor:
    return _SLOT_BY_SLOT(query, key, value, mask, scaling, [(count, end - 1) for count, end in ends])


def _wide_chunks_have_others_keys(query: Tensor, key: Tensor, *given: Any) -> Tensor:
    return _SLOT_BY_SLOT(query, key.flip(0), *given)


def _all_layers_have_windows(cache: SlotCache, mask: Tensor) -> Any:
    found = _MASKS(cache, mask)
    assert isinstance(found, dict)
    return found | {"full_attention": found["sliding_attention"]}


def _window(by: int) -> Callable[..., Tensor]:
    return lambda cache, mask, window: _WINDOWED(cache, mask, window + by)


def has_windows(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "sliding_window", None))


def has_convolutions(model: PreTrainedModel) -> bool:
    return "conv" in (getattr(model.config, "layer_types", None) or ())


def has_layers_of_two_kinds(model: PreTrainedModel) -> bool:
    return {"sliding_attention", "full_attention"} <= set(getattr(model.config, "layer_types", None) or ())


def shares_keys(model: PreTrainedModel) -> bool:
    return getattr(model.config, "num_key_value_heads", 1) > 1


def caps_scores(model: PreTrainedModel) -> bool:
    return bool(getattr(model.config, "attn_logit_softcapping", None))


def goes_through_slots(model: PreTrainedModel) -> bool:
    return not caps_scores(model)


def anyone(model: PreTrainedModel) -> bool:
    return True


FAULTS: dict[str, tuple[Callable[[PreTrainedModel], bool], str, Callable[..., Any]]] = {
    "later chunks shifted by a position": (anyone, "begin", _later_chunks_are_shifted),
    "positions begin again with every chunk": (anyone, "begin", _chunks_begin_at_zero),
    "the last key before a chunk hidden": (anyone, "begin", _last_key_before_a_chunk_is_hidden),
    "the first key hidden": (anyone, "begin", _first_key_is_hidden),
    "the next token seen": (anyone, "begin", _next_token_is_seen),
    "keys of slots swapped": (anyone, "update", _slots_are_swapped),
    "some slots taken for the first ones": (anyone, "update", _some_slots_are_taken_for_the_first_ones),
    "the first value forgotten": (anyone, "commit", _first_value_is_forgotten),
    "lengths a token short": (anyone, "commit", _lengths_are_a_token_short),
    "the last token not copied": (anyone, "copy", _the_last_token_is_not_copied),
    "window a token too wide": (has_windows, "windowed", _window(1)),
    "window a token too narrow": (has_windows, "windowed", _window(-1)),
    "windows in all layers": (has_layers_of_two_kinds, "_masks", _all_layers_have_windows),
    "heads with the keys of others": (shares_keys, "attention", _heads_have_others_keys),
    "scores scaled by 1.1 times too much": (anyone, "attention", _scores_are_scaled_by_width),
    "caps on scores left out": (caps_scores, "attention", _caps_are_left_out),
    "last tokens of wide chunks without themselves": (
        goes_through_slots,
        "_slot_by_slot",
        _last_tokens_of_wide_chunks_miss_themselves,
    ),
    "wide chunks with the keys of others": (goes_through_slots, "_slot_by_slot", _wide_chunks_have_others_keys),
    "states of convolutions stale": (has_convolutions, "update_conv_state", _states_are_stale),
    "states of convolutions count padding": (has_convolutions, "update_conv_state", _states_count_padding),
    "states of convolutions never cleared": (has_convolutions, "clear", _states_are_never_cleared),
}
"""By name: which models it is one in, what is replaced, by what."""


def faults_of(model: PreTrainedModel) -> list[str]:
    return [name for name, (concerns, _, _) in FAULTS.items() if concerns(model)]


@contextmanager
def fault(name: str) -> Iterator[None]:
    _, part, wrong = FAULTS[name]
    with pytest.MonkeyPatch.context() as patch:
        if part in ("_masks", "_slot_by_slot"):
            patch.setattr(forward, part, wrong)
        elif part == "attention":
            patch.setitem(forward.ALL_ATTENTION_FUNCTIONS._local_mapping, forward._GROUPED, wrong)
        else:
            patch.setattr(SlotCache, part, wrong)
        yield
