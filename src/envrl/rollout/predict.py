"""The model's predictions of the world's answers."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.models.load import LanguageModel
from envrl.rendering.renderer import Pair
from envrl.rollout.slot_sampler import SlotSampler
from envrl.sequences import order
from envrl.types import Ids

_SLOTS = 64
LONGEST = 96
"""The most tokens of a prediction, where nothing else is said."""


def predict_targets(
    model: LanguageModel, pairs: Sequence[Pair], stops: frozenset[int], max_tokens: int = LONGEST
) -> list[str]:
    """Return the greedy completion of each pair's prompt as text, up to a stop, a mark or `max_tokens`.

    Prompts with a common prefix, such as those of one episode, follow each other in a slot, so the prefix is run once.
    A prompt that does not fit the model's context with `max_tokens` gets an empty text.
    """
    prompts = [p for p in dict.fromkeys(pair.prompt for pair in pairs) if len(p) + max_tokens <= model.context]
    prompts.sort(key=order)
    ends = stops | model.codec.mark_ids
    slots = max(1, min(_SLOTS, len(prompts)))
    streams = [prompts[len(prompts) * slot // slots : len(prompts) * (slot + 1) // slots] for slot in range(slots)]
    sampler = SlotSampler(model, slots, 0.0, max_tokens, ends)
    asked: dict[int, Ids] = {}

    def ask_next(slot: int) -> None:
        if streams[slot]:
            prompt = asked[slot] = streams[slot].pop(0)
            held = sampler.rewind(slot, prompt)
            sampler.ask(slot, prompt[held:], None, 0, 0)

    for slot in range(slots):
        ask_next(slot)
    texts: dict[Ids, str] = {}
    while drafts := sampler.run(enough=1):
        for slot, draft in drafts.items():
            ids = draft.token_ids
            texts[asked[slot]] = model.codec.decode(ids[:-1] if ids and ids[-1] in ends else ids)
            ask_next(slot)
    return [texts.get(pair.prompt, "") for pair in pairs]
