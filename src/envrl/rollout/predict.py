"""What the model thinks that the world will answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envrl.models.load import LanguageModel
from envrl.rollout.sampler import Sampler
from envrl.rollout.wording import Pair

_SLOTS = 64


def predict_targets(
    model: LanguageModel, pairs: Sequence[Pair], stops: frozenset[int], max_tokens: int = 96
) -> list[str]:
    """Return the text that greedy decoding gives for each pair's prompt, up to a stop, a mark or `max_tokens`."""
    unique = list(dict.fromkeys(pair.prompt for pair in pairs))
    unique.sort(key=len)
    found: dict[tuple[int, ...], str] = {}
    ends = stops | model.codec.mark_ids
    for start in range(0, len(unique), _SLOTS):
        prompts = [prompt for prompt in unique[start : start + _SLOTS] if len(prompt) + max_tokens <= model.context]
        if not prompts:
            continue
        sampler = Sampler(model, len(prompts), 0.0, max_tokens, ends)
        drafts = sampler.sample(prompts, [None] * len(prompts), np.zeros(len(prompts), dtype=np.uint64), 0)
        for prompt, draft in zip(prompts, drafts, strict=True):
            ids = draft.token_ids if draft is not None else []
            found[prompt] = model.codec.decode(ids[:-1] if ids and ids[-1] in ends else ids)
    return [found.get(pair.prompt, "") for pair in pairs]
