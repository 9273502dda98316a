"""What the model thinks that the world will answer."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.models.load import LanguageModel
from envrl.rendering.renderer import Pair
from envrl.rollout.slot_sampler import SlotSampler
from envrl.sequences import order
from envrl.types import Ids

_SLOTS = 16


def predict_targets(
    model: LanguageModel, pairs: Sequence[Pair], stops: frozenset[int], max_tokens: int = 96
) -> list[str]:
    """Return the text that greedy decoding gives for each pair's prompt, up to a stop, a mark or `max_tokens`.

    Prompts that begin alike, as those of one episode do, follow each other in a slot: what they share is run once.
    """
    prompts = [p for p in dict.fromkeys(pair.prompt for pair in pairs) if len(p) + max_tokens <= model.context]
    prompts.sort(key=order)
    ends = stops | model.codec.mark_ids
    slots = max(1, min(_SLOTS, len(prompts)))
    streams = [prompts[len(prompts) * slot // slots : len(prompts) * (slot + 1) // slots] for slot in range(slots)]
    sampler = SlotSampler(model, slots, 0.0, max_tokens, ends)
    found: dict[Ids, str] = {}
    for turn in range(max(map(len, streams), default=0)):
        asked = {slot: stream[turn] for slot, stream in enumerate(streams) if turn < len(stream)}
        for slot, prompt in asked.items():
            held = sampler.rewind(slot, prompt)
            sampler.ask(slot, prompt[held:], None, 0, turn)
        drafts = sampler.run()
        for slot, prompt in asked.items():
            ids = drafts[slot].token_ids
            found[prompt] = model.codec.decode(ids[:-1] if ids and ids[-1] in ends else ids)
    return [found.get(pair.prompt, "") for pair in pairs]
