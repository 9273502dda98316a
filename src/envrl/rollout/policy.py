"""The policy that plays episodes: a renderer that writes the prompts, and a sampler that draws the responses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from envrl.rendering.renderer import PromptWriter
from envrl.rollout.sampler import Sampler

if TYPE_CHECKING:  # endpoints play without torch
    from envrl.models.tokenizer import Codec


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that plays. Restricting its responses to the world's commands needs the `codec` of its tokenizer."""

    renderer: PromptWriter
    sampler: Sampler
    codec: Codec | None = None
