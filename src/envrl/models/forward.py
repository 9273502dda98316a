"""Running a causal language model: hidden states of padded rows, of chunks into live slots, and log-probs from them."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from envrl.errors import UserError
from envrl.models.slots import SlotCache

_NEVER = -1e30


def _decoder(model: PreTrainedModel) -> nn.Module:
    return cast(nn.Module, model.get_decoder())


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of rows of the embedding, which may exceed the tokenizer's."""
    return cast(Tensor, model.get_input_embeddings().weight).shape[0]


def row_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the last hidden states (rows, tokens, width) of right-padded ids (rows, tokens).

    Attention is causal, so padding on the right is never seen and needs no mask.
    """
    return _decoder(model)(input_ids=ids, use_cache=False).last_hidden_state


def chunk_states(
    model: PreTrainedModel, cache: SlotCache, ids: Tensor, counts: Tensor, slots: Tensor | None = None
) -> Tensor:
    """Feed a right-padded chunk (slots, width) into live slots, all or some; return its states (slots, width, size)."""
    positions, mask = cache.begin(counts, ids.shape[1], slots)
    has_convolution = "conv" in (getattr(cache.config, "layer_types", None) or ())
    attention_mask: Any = {"full_attention": mask, "conv": None} if has_convolution else mask
    own = model.config._attn_implementation
    model.config._attn_implementation = _GROUPED
    try:
        states = _decoder(model)(
            input_ids=ids, position_ids=positions, attention_mask=attention_mask, past_key_values=cache, use_cache=True
        ).last_hidden_state
    finally:
        model.config._attn_implementation = own
    cache.commit()
    return states


def _grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, *, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attend to the slots' keys and values; query heads that share a key head become rows of one product.

    So keys and values are read once, not once a query head: with few new tokens a slot, reading them is what costs.
    """
    slots, heads, width, size = query.shape
    groups = heads // key.shape[1]
    rows = query.reshape(slots, key.shape[1], groups * width, size)
    mask = attention_mask.repeat(1, 1, groups, 1) if groups > 1 else attention_mask
    found = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask.to(query.dtype), scale=scaling)
    return found.reshape(slots, heads, width, size).transpose(1, 2).contiguous(), None


_GROUPED = "envrl_grouped"
ALL_ATTENTION_FUNCTIONS.register(_GROUPED, _grouped_attention)


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return logits (n, vocabulary) of hidden states (n, width), in fp32 or what is more precise."""
    logits = cast(nn.Module, model.get_output_embeddings())(states)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def restricted_logits(logits: Tensor, allowed: Tensor) -> Tensor:
    """Return the logits (n, choices) of each row's allowed ids; entries of `allowed` below 0 are padding."""
    chosen = logits.gather(1, allowed.clamp(min=0))
    return chosen.masked_fill(allowed < 0, _NEVER)


def log_softmax_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probs (n, choices) and entropies (n,) in nats of rows of logits; masked entries count as 0."""
    logprobs = F.log_softmax(logits, dim=-1)
    probabilities = logprobs.exp()
    return logprobs, -(probabilities * logprobs.masked_fill(probabilities == 0, 0.0)).sum(-1)


@torch.no_grad()
def admit(model: PreTrainedModel) -> None:
    """Refuse a model that our slot cache cannot run: `UserError` unless cached and full log-probs agree (1e-4 in fp32).

    Three slots of unequal lengths are fed in ragged chunks, the last of them into two slots alone, and compared with
    the model's own full pass.
    """
    kind = f"models of type '{model.config.model_type}'"
    advice = "use a Llama, Qwen2, Qwen3 or LFM2 model"
    window = _sliding_window(model)
    if window:
        raise UserError(f"{kind} with a sliding window ({window} tokens) are not supported: {advice}")
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocabulary_size(model), (length,), generator=generator) for length in (10, 3, 11)]
    try:
        cached = _cached_logprobs(model, rows, [{0: 5, 1: 2, 2: 7}, {0: 1, 1: 1, 2: 2}, {0: 4, 2: 2}])
    except (TypeError, AttributeError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{kind} cannot be sampled with our slot cache ({error}): {advice}") from error
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 0.3
    for row, found in zip(rows, cached, strict=True):
        full = model(input_ids=row[None].to(found.device)).logits[0].float().log_softmax(-1)
        gap = float((found - full).abs().max())
        if not gap <= tolerance:
            raise UserError(
                f"{kind} are not supported: their cached and full log-probs differ by {gap:.1e}, more than "
                f"{tolerance:g}: {advice}"
            )


def _sliding_window(model: PreTrainedModel) -> int:
    """Return the width of a window that hides part of the context from some layer, 0 where there is none."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None) or ("sliding_attention",)
    sees_all = window >= (getattr(config, "max_position_embeddings", None) or math.inf)
    return 0 if sees_all or "sliding_attention" not in kinds else int(window)


def _cached_logprobs(model: PreTrainedModel, rows: list[Tensor], turns: list[dict[int, int]]) -> list[Tensor]:
    """Return each row's log-probs (tokens, vocabulary) when a turn feeds so many of its tokens (slot: count)."""
    weight = next(model.parameters())
    cache = SlotCache(model.config, len(rows), weight.dtype, weight.device)
    found: list[list[Tensor]] = [[] for _ in rows]
    fed = [0] * len(rows)
    for turn in turns:
        ids = torch.zeros(len(turn), max(turn.values()), dtype=torch.long)
        for place, (slot, count) in enumerate(turn.items()):
            ids[place, :count] = rows[slot][fed[slot] : fed[slot] + count]
            fed[slot] += count
        counts, slots = (torch.tensor(list(part), device=weight.device) for part in (turn.values(), turn))
        states = chunk_states(model, cache, ids.to(weight.device), counts, None if len(turn) == len(rows) else slots)
        for place, (slot, count) in enumerate(turn.items()):
            found[slot].append(logits_of(model, states[place, :count]).log_softmax(-1))
    return [torch.cat(parts) for parts in found]
