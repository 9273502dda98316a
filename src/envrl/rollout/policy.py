"""What chooses the commands of episodes: a renderer that writes prompts, and a sampler that draws the responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from envrl.rendering.renderer import PromptWriter
from envrl.rollout.sampler import Sampler

if TYPE_CHECKING:  # endpoints are played without torch
    from envrl.models.tokenizer import Codec


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that plays; with the `codec` of its tokenizer what it says can be restricted to the world's commands."""

    renderer: PromptWriter
    sampler: Sampler
    codec: Codec | None = None
