"""Run a causal language model: hidden states of padded rows and of chunks fed into live slots, and their log-probs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache as cached
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from envrl.models.slots import SlotCache

_NEVER = -1e30


def _decoder(model: PreTrainedModel) -> nn.Module:
    return cast(nn.Module, model.get_decoder())


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of rows of the embedding, which may exceed the tokenizer's vocabulary."""
    return cast(Tensor, model.get_input_embeddings().weight).shape[0]


def state_width(model: PreTrainedModel) -> int:
    """Return the width of the final hidden states."""
    return cast(Tensor, cast(nn.Module, model.get_output_embeddings()).weight).shape[1]


def row_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the last hidden states (rows, tokens, width) of right-padded ids (rows, tokens).

    Attention is causal, so padding on the right is never seen and needs no mask.
    """
    return _decoder(model)(input_ids=ids, use_cache=False).last_hidden_state


def chunk_states(
    model: PreTrainedModel,
    cache: SlotCache,
    ids: Tensor,
    counts: Tensor,
    slots: Tensor | None = None,
    visible: int | None = None,
) -> Tensor:
    """Feed a right-padded chunk (slots, width) into live slots, all or some; return its states (slots, width, size).

    `visible` is passed to `SlotCache.begin`.
    """
    positions, mask = cache.begin(counts, ids.shape[1], slots, visible)
    attention_mask: Any = _masks(cache, mask)
    wide = mask.device.type == "cpu" and ids.shape[1] >= _WIDE
    ends: Any = list(zip(counts.tolist(), cache.ends.tolist(), strict=True)) if wide else None
    decoder, own = _decoder(model), model.config._attn_implementation
    arguments: dict[str, Any] = {_cache_name(type(decoder)): cache, **({"ends": ends} if wide else {})}
    model.config._attn_implementation = _GROUPED
    try:
        states = decoder(
            input_ids=ids, position_ids=positions, attention_mask=attention_mask, use_cache=True, **arguments
        ).last_hidden_state
    finally:
        model.config._attn_implementation = own
    cache.commit()
    return states


@cached
def _cache_name(decoder: type[nn.Module]) -> str:
    """Return the decoder's argument for the cache: `cache`, or `past_key_values` before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def _masks(cache: SlotCache, mask: Tensor) -> Tensor | dict[str, Tensor | None]:
    """Return the chunk's mask in the model's form: one for all layers, or one for each kind of layer."""
    window = getattr(cache.config, "sliding_window", None)
    kinds = set(getattr(cache.config, "layer_types", None) or ())
    if not kinds:
        return cache.windowed(mask, window) if window else mask
    if not kinds & {"sliding_attention", "conv"}:
        return mask
    masks: dict[str, Tensor | None] = {"full_attention": mask, "conv": None}
    if window and "sliding_attention" in kinds:
        masks["sliding_attention"] = cache.windowed(mask, window)
    return masks


def _grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    ends: Sequence[tuple[int, int]] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend to the slots' keys and values; query heads that share a key head become rows of one product.

    So keys and values are read once, not once per query head: with few new tokens per slot, reading dominates the cost.
    A `softcap` c bounds the scores s before the mask: c · tanh(s / c). If `ends` is given, slots are processed one by
    one: it has each slot's number of new tokens and the number of positions that the last one sees.
    """
    slots, heads, width, size = query.shape
    groups = heads // key.shape[1]
    if ends is not None and softcap is None:
        return _slot_by_slot(query, key, value, attention_mask, scaling, ends), None
    rows = query.reshape(slots, key.shape[1], groups * width, size)
    mask = attention_mask.repeat(1, 1, groups, 1) if groups > 1 else attention_mask
    if softcap is None:
        output = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask.to(query.dtype), scale=scaling)
    else:
        scores = softcap * torch.tanh(rows @ key.transpose(2, 3) * (scaling / softcap)) + mask
        output = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype) @ value
    return output.reshape(slots, heads, width, size).transpose(1, 2).contiguous(), None


def _slot_by_slot(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, ends: Sequence[tuple[int, int]]
) -> Tensor:
    """Attend without padding, each slot's new tokens to its own positions; return (slots, width, heads, size).

    On a CPU these plain products are 1.2 to 2 times as fast as the fused kernel, which also computes the padding.
    """
    slots, heads, width, size = query.shape
    output = query.new_zeros(slots, width, heads, size)
    for slot, (count, end) in enumerate(ends):
        if not count:
            continue
        rows = query[slot, :, :count].reshape(key.shape[1], -1, size) * scaling
        scores = torch.bmm(rows, key[slot, :, :end].transpose(1, 2)).view(heads, count, end)
        weights = scores.add_(mask[slot, :, :count, :end]).softmax(-1).view(key.shape[1], -1, end)
        seen = torch.bmm(weights, value[slot, :, :end])
        output[slot, :count] = seen.view(heads, count, size).transpose(0, 1)
    return output


_WIDE = 16
"""Chunks of at least this many tokens are processed slot by slot (measured with heads of width 64)."""
_GROUPED = "envrl_grouped"
ALL_ATTENTION_FUNCTIONS.register(_GROUPED, _grouped_attention)


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits (n, vocabulary) of hidden states (n, width), at least in fp32.

    A configuration's `final_logit_softcapping` c bounds them: c · tanh(logit / c).
    """
    logits = cast(nn.Module, model.get_output_embeddings())(states)
    return soft_capped(logits.to(torch.promote_types(logits.dtype, torch.float32)), logit_cap(model))


def logit_cap(model: PreTrainedModel) -> float | None:
    """Return the soft cap of the model's logits, or None."""
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """Return cap · tanh(logits / cap), or the logits unchanged without a cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def restricted_logits(logits: Tensor, allowed: Tensor) -> Tensor:
    """Return the logits (n, choices) of each row's allowed ids; entries of `allowed` below 0 are padding."""
    chosen = logits.gather(1, allowed.clamp(min=0))
    return chosen.masked_fill(allowed < 0, _NEVER)


def log_softmax_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probs (n, choices) and entropies (n,) of rows of logits, in nats; masked entries count as 0."""
    logprobs = F.log_softmax(logits, dim=-1)
    probabilities = logprobs.exp()
    return logprobs, -(probabilities * logprobs.masked_fill(probabilities == 0, 0.0)).sum(-1)


def longest_sequence(model: PreTrainedModel) -> int:
    """Return the longest sequence of the network, in tokens.

    With `longrope`, rotary positions change for all tokens once a sequence exceeds the model's original training
    length, which would invalidate cached keys; so that length is the limit.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    first = rope.get("original_max_position_embeddings", 0) if rope.get("rope_type") == "longrope" else 0
    return int(first or getattr(config, "max_position_embeddings", 0) or 1 << 30)
