"""What the model thinks that the world will answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envrl.models.load import LanguageModel
from envrl.rollout.auxiliary import Pair
from envrl.rollout.sampler import Sampler

_SLOTS = 64


def predict_targets(model: LanguageModel, pairs: Sequence[Pair], max_tokens: int = 96) -> list[str]:
    """Return the text that greedy decoding gives for each pair's prompt, up to the first mark or `max_tokens`."""
    unique = list(dict.fromkeys(pair.prompt for pair in pairs))
    unique.sort(key=len)
    found: dict[tuple[int, ...], str] = {}
    for start in range(0, len(unique), _SLOTS):
        prompts = [prompt for prompt in unique[start : start + _SLOTS] if len(prompt) + max_tokens <= model.context]
        if not prompts:
            continue
        sampler = Sampler(model, len(prompts), 0.0, max_tokens, frozenset(model.codec.mark_ids))
        drafts = sampler.sample(prompts, [None] * len(prompts), np.zeros(len(prompts), dtype=np.uint64), 0)
        for prompt, draft in zip(prompts, drafts, strict=True):
            found[prompt] = model.codec.decode(draft.token_ids if draft is not None else ())
    return [found.get(pair.prompt, "") for pair in pairs]
