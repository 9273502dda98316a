"""Playing with a model's own sampler, as a recipe does that says nothing else."""

from __future__ import annotations

from typing import Any

from envrl.models.load import LanguageModel
from envrl.rendering.renderer import Renderer
from envrl.rollout.own_sampler import OwnSampler
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.types import Trajectory


def own_policy(model: LanguageModel, renderer: Renderer) -> Policy:
    return Policy(renderer, OwnSampler(model), model.codec)


def play_model(model: LanguageModel, renderer: Renderer, *arguments: Any, **options: Any) -> list[Trajectory]:
    return play_episodes(own_policy(model, renderer), *arguments, **options)
