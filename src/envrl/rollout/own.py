"""The built-in sampler as the registry finds it, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envrl.registry import register

if TYPE_CHECKING:  # a recipe's settings are read from this signature, without torch
    from envrl.models.load import LanguageModel
    from envrl.rollout.sampler import Sampler


@register("sampler", "own")
def own(model: LanguageModel, precision: str) -> Sampler:
    """Return the built-in sampler: in this process, with a KV cache that lives across an episode's turns."""
    from envrl.rollout.own_sampler import OwnSampler

    return OwnSampler(model, precision)
