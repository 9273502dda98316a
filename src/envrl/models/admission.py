"""Admit only models that the slot cache runs correctly: cached, training and own log-probs agree up to rounding."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from envrl.errors import UserError
from envrl.models.forward import chunk_states, logits_of, longest_sequence, row_states, vocabulary_size
from envrl.models.out_of_memory import is_out_of_memory
from envrl.models.rounding import most_roundings, rounded_anew, roundings_apart
from envrl.models.slots import SlotCache
from envrl.models.tokenizer import Codec

PASSAGE = (
    "You arrive at the kitchen. On the table 1, you see a clean mug, two spoons and a loaf of bread. Your task is to "
    "put the mug into the cupboard, but its door is closed."
)
"""Real text for the test, since a trained network may round very differently on random ids."""

_LENGTHS, _SHARED = (36, 11, 20, 8), 9
_ADMITTED: set[str] = set()


def admit_once(model: PreTrainedModel, codec: Codec) -> None:
    """Admit a model, unless one with the same architecture, dtype and device type was admitted before.

    A fault would be in the model's code or ours, so it does not depend on the weights.
    """
    weight = next(model.parameters())
    settings = model.config.to_dict()
    for name in ("_name_or_path", "architectures", "dtype", "transformers_version"):  # these give its origin
        settings.pop(name, None)
    settings["ours"] = [type(model), weight.dtype, weight.device.type, model.config._attn_implementation]
    key = json.dumps(settings, sort_keys=True, default=str)
    if key not in _ADMITTED:
        admit(model, codec.encode(PASSAGE))
        _ADMITTED.add(key)


@torch.no_grad()
def admit(model: PreTrainedModel, passage: Sequence[int]) -> None:
    """Raise `UserError` if the slot cache cannot run a model: its log-probs must agree up to rounding.

    Four rows, of a passage's ids and random ones, are fed into three slots in ragged chunks, into all or some of them;
    one slot is copied, one is cleared and reused. Their log-probs, and those of padded rows as in training, are
    compared with the model's own full pass over each row. `most_roundings` is the tolerance. A sliding window is
    narrowed for the test, so that it hides something.
    """
    kind = f"models of type '{model.config.model_type}'"
    advice = "use a model of the families Qwen, Llama, Gemma, Phi-3 or LFM2"
    rows = _rows(model, passage)
    with _narrow_window(model, 4):
        try:
            cached = _cached_logprobs(model, rows)
        except (TypeError, AttributeError, RuntimeError, ValueError, KeyError, IndexError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"{kind} cannot be sampled with our slot cache ({error}): {advice}") from error
        full, trained = _own_logprobs(model, rows), _padded_logprobs(model, rows)
        with rounded_anew(model):
            anew = _own_logprobs(model, rows)
    most = most_roundings(model)
    for name, found in (("cached", cached), ("trained", trained)):
        apart = roundings_apart(found, full, anew)
        if not apart <= most:
            raise UserError(
                f"{kind} are not supported: their {name} and full log-probs differ by {apart:.1e} times what rounding "
                f"explains, more than {most:g}: {advice}"
            )


def _rows(model: PreTrainedModel, passage: Sequence[int]) -> list[Tensor]:
    """Return the rows of ids for the test; the third shares a prefix with the first."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(vocabulary_size(model), (length,), generator=generator) for length in _LENGTHS]
    text = torch.tensor(passage[: len(rows[0])], dtype=torch.long)
    rows[0][: len(text)] = text
    rows[2][:_SHARED] = rows[0][:_SHARED]
    device = next(model.parameters()).device
    return [row[: longest_sequence(model)].to(device) for row in rows]


@contextmanager
def _narrow_window(model: PreTrainedModel, width: int) -> Iterator[None]:
    """Narrow a sliding window, if the model has one, to `width` tokens in the block."""
    config = model.config.get_text_config()
    own = getattr(config, "sliding_window", None)
    if own:
        config.sliding_window = min(own, width)
    try:
        yield
    finally:
        if own:
            config.sliding_window = own


def _own_logprobs(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """Return each row's log-probs (tokens, vocabulary) from the model's own code."""
    return [model(input_ids=row[None]).logits[0].float().log_softmax(-1) for row in rows]


def _padded_logprobs(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """Return each row's log-probs (tokens, vocabulary) from one pass over all rows, padded on the right."""
    longest = max(map(len, rows))
    states = row_states(model, torch.stack([F.pad(row, (0, longest - len(row))) for row in rows]))
    return [logits_of(model, each[: len(row)]).log_softmax(-1) for each, row in zip(states, rows, strict=True)]


def _cached_logprobs(model: PreTrainedModel, rows: Sequence[Tensor]) -> list[Tensor]:
    """Return each row's log-probs (tokens, vocabulary) from the slot cache."""
    weight = next(model.parameters())
    cache = SlotCache(model.config, 3, weight.dtype, weight.device)
    found: list[list[Tensor]] = [[] for _ in rows]
    row_of = [0, 1, 2]

    def feed(turn: dict[int, int]) -> None:
        """Feed each slot the next tokens of its row (slot: count), or the rest of the row if that is shorter."""
        parts = {}
        for slot, count in turn.items():
            done = sum(map(len, found[row_of[slot]]))
            parts[slot] = rows[row_of[slot]][done : done + count]
        width = max(max(map(len, parts.values())), 1)
        ids = torch.stack([F.pad(part, (0, width - len(part))) for part in parts.values()])
        counts, slots = (torch.tensor(list(each), device=weight.device) for each in (map(len, parts.values()), parts))
        states = chunk_states(model, cache, ids, counts, None if list(parts) == [0, 1, 2] else slots)
        for place, (slot, part) in enumerate(parts.items()):
            found[row_of[slot]].append(logits_of(model, states[place, : len(part)]).log_softmax(-1))

    first, second, third = (torch.tensor([slot], device=weight.device) for slot in range(3))
    feed({0: _SHARED, 1: 2})
    cache.copy(first, third)
    found[2].append(found[0][0])
    for turn in ({2: 2, 0: 4}, {0: 1, 1: 9, 2: 2}):
        feed(turn)
    cache.clear(second)
    row_of[1] = 3
    for turn in ({2: 3, 1: 2, 0: 1}, {0: 4, 1: 6, 2: 1}, {2: 3, 0: 17}):  # the last chunk is as wide as a first prompt
        feed(turn)
    return [torch.cat(parts) for parts in found]
