"""The model's predictions of the world's answers."""

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
    texts: dict[Ids, str] = {}
    for turn in range(max(map(len, streams), default=0)):
        active = {slot: stream[turn] for slot, stream in enumerate(streams) if turn < len(stream)}
        for slot, prompt in active.items():
            held = sampler.rewind(slot, prompt)
            sampler.ask(slot, prompt[held:], None, 0, turn)
        drafts = sampler.run()
        for slot, prompt in active.items():
            ids = drafts[slot].token_ids
            texts[prompt] = model.codec.decode(ids[:-1] if ids and ids[-1] in ends else ids)
    return [texts.get(pair.prompt, "") for pair in pairs]
