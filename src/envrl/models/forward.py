"""Running a causal language model: hidden states of padded rows, of chunks into live slots, and log-probs from them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from envrl.errors import UserError
from envrl.models.slots import SlotCache

_NEVER = -1e30


def _decoder(model: PreTrainedModel) -> nn.Module:
    return model.get_decoder()


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
    states = _decoder(model)(
        input_ids=ids, position_ids=positions, attention_mask=attention_mask, past_key_values=cache, use_cache=True
    ).last_hidden_state
    cache.commit()
    return states


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return fp32 logits (n, vocabulary) of hidden states (n, width)."""
    return model.get_output_embeddings()(states).float()


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
    """Refuse a model whose cached and full log-probs differ: `UserError` unless they agree to 1e-4 in fp32.

    Three slots of unequal lengths are fed in three ragged chunks and compared with the model's own full pass.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    lengths = [[5, 1, 4], [2, 3, 1], [7, 2, 2]]
    size = model.get_input_embeddings().weight.shape[0]
    rows = [torch.randint(size, (sum(parts),), generator=generator) for parts in lengths]
    cache = SlotCache(model.config, len(rows), 64, next(model.parameters()).dtype, device)
    found: list[list[Tensor]] = [[] for _ in rows]
    fed = [0] * len(rows)
    for turn in range(3):
        counts = [parts[turn] for parts in lengths]
        ids = torch.zeros(len(rows), max(counts), dtype=torch.long)
        for i, count in enumerate(counts):
            ids[i, :count] = rows[i][fed[i] : fed[i] + count]
            fed[i] += count
        try:
            states = chunk_states(model, cache, ids.to(device), torch.tensor(counts, device=device))
        except (TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise UserError(
                f"models of type '{model.config.model_type}' cannot be sampled with our slot cache ({error}); use a Llama, "
                "Qwen2, Qwen3 or LFM2 model"
            ) from error
        for i, count in enumerate(counts):
            found[i].append(logits_of(model, states[i, :count]))
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 0.3
    for i, row in enumerate(rows):
        full = model(input_ids=row[None].to(device)).logits[0].float().log_softmax(-1)
        gap = float((torch.cat(found[i]).log_softmax(-1) - full).abs().max())
        if not gap <= tolerance:
            raise UserError(
                f"models of type '{model.config.model_type}' are not supported: their cached and full log-probs differ by "
                f"{gap:.1e} (more than {tolerance:g}); use a Llama, Qwen2, Qwen3 or LFM2 model"
            )
