"""Playing with a model's own sampler, as a recipe does that says nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envrl.models.load import LanguageModel
from envrl.rendering.renderer import Renderer
from envrl.rollout.own_sampler import OwnSampler
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.rollout.slot_sampler import Draft, SlotSampler
from envrl.rollout.trie import Node
from envrl.types import Trajectory


def own_policy(model: LanguageModel, renderer: Renderer) -> Policy:
    return Policy(renderer, OwnSampler(model), model.codec)


def play_model(model: LanguageModel, renderer: Renderer, *arguments: Any, **options: Any) -> list[Trajectory]:
    return play_episodes(own_policy(model, renderer), *arguments, **options)


def sample(
    sampler: SlotSampler,
    prompts: Sequence[Sequence[int] | None],
    tries: Sequence[Node | None],
    keys: NDArray[np.uint64],
    turn: int,
) -> list[Draft | None]:
    """Ask every slot and sample all responses; a slot whose prompt is None is skipped."""
    for slot, prompt in enumerate(prompts):
        if prompt is not None:
            sampler.ask(slot, prompt, tries[slot], int(keys[slot]), turn)
    closed = sampler.run()
    return [closed.get(slot) for slot in range(len(prompts))]
