"""Build the objects that a configuration describes: its world, renderer, sampler and policy."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from envrl.config.schema import Config
from envrl.envs.pool import Worlds
from envrl.envs.registry import maker
from envrl.envs.settings import WorldSettings, set_maker
from envrl.registry import blame, find
from envrl.rendering.marks import MarksRenderer
from envrl.rendering.renderer import MARKS, Form, Renderer

if TYPE_CHECKING:  # scripts and endpoints play without torch
    from envrl.models.load import LanguageModel
    from envrl.rollout.policy import Policy
    from envrl.rollout.sampler import Sampler
    from envrl.rollout.scheduler import PlaySettings


def env_maker(config: Config) -> Worlds:
    """Return a factory of the recipe's world with its settings, which runs many at once in `env.workers` workers."""
    settings = WorldSettings(**{f.name: getattr(config.env, f.name) for f in fields(WorldSettings)})
    make_env = set_maker(maker(config.env.name, **env_options(config)), settings)
    return Worlds(make_env, config.env.workers, config.env.timeout, config.env.place)


def env_options(config: Config) -> dict[str, Any]:
    """Return the keyword arguments of the world's factory: its non-default settings, and the folder of its data."""
    beginning = f"env.{config.env.name}."
    own = {key.removeprefix(beginning): value for key, value in config.owned.items() if key.startswith(beginning)}
    return own | ({"data": config.env.data} if config.env.data else {})


def play_settings(config: Config, temperature: float, actions: str | None = None) -> PlaySettings:
    """Return the recipe's play settings at this temperature, and under this restriction of actions if one is given."""
    from envrl.rollout.scheduler import PlaySettings

    rollout = config.rollout
    return PlaySettings(
        max_steps=config.env.max_steps,
        temperature=temperature,
        actions=actions or rollout.actions,
        response_tokens=rollout.response_tokens,
        slots=rollout.slots,
    )


def training_settings(config: Config) -> PlaySettings:
    """Return the recipe's play settings for training episodes."""
    rollout = config.rollout
    return replace(
        play_settings(config, rollout.temperature),
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        max_steps=rollout.max_steps or config.env.max_steps,
        reward=rollout.reward,
        reward_scale=rollout.reward_scale,
    )


def form_of(config: Config) -> Form:
    """Return the form of the recipe's prompts."""
    rollout = config.rollout
    return Form(
        layout=rollout.layout,
        history=rollout.history,
        show_admissible=rollout.show_admissible,
        repeat_task=rollout.repeat_task,
        format=rollout.format,
        format_settings=config.settings("format"),
        summary=rollout.summary,
        prompt_tokens=rollout.prompt_tokens,
        system_message=rollout.system_message,
        template_arguments=config.model.template_arguments,
    )


def renderer_of(model: LanguageModel, form: Form, context: int = 0) -> Renderer:
    """Return the renderer of a model's prompts, of at most `context` tokens (0: the model's context).

    Raises `UserError` if the model's tokenizer cannot write the form.
    """
    context = context or model.context
    if form.format == MARKS:
        return MarksRenderer(model.codec, form, context)
    from envrl.models.template import ChatTemplate, stops_of
    from envrl.rendering.chats import ChatRenderer

    template = ChatTemplate(model.codec, stops_of(model.network, model.codec), form.template_arguments)
    return ChatRenderer(template, form, context)


def sampler_of(model: LanguageModel, config: Config) -> Sampler:
    """Return the recipe's sampler for a model; it samples from the model or from a copy in `rollout.precision`."""
    from envrl.rollout.sampler import GuardedSampler

    entry = find("sampler", config.rollout.sampler)
    with blame(entry):
        sampler = entry.target(model, config.rollout.precision, **config.settings("sampler"))
    return sampler if entry.ships else GuardedSampler(entry, sampler, model)


def policy_of(model: LanguageModel, config: Config, renderer: Renderer) -> Policy:
    """Return the recipe's policy: this model's sampler with this renderer, or a copy's if it plays ahead."""
    from envrl.rollout.policy import Policy

    if config.rollout.ahead:
        from envrl.models.copies import sampling_copy

        model = sampling_copy(model, config.rollout.precision, apart=True)
        renderer = renderer_of(model, form_of(config))
    return Policy(renderer, sampler_of(model, config), model.codec)
