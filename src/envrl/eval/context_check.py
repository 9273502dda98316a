"""Check that episodes can begin at all: compare a few first prompts of a split with the model's context."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from envrl.build import form_of, play_settings, renderer_of
from envrl.config.schema import Config
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.pool import vector_of
from envrl.envs.protocol import TextEnv
from envrl.envs.vector import Start
from envrl.errors import UserError
from envrl.models.load import LanguageModel
from envrl.rendering.renderer import SegmentState
from envrl.rollout.scheduler import room_for
from envrl.rollout.trie import Commands
from envrl.types import Task

SAMPLE = 32
"""Number of tasks tried, evenly over a split: one that fits is enough."""


class _Need(NamedTuple):
    """Tokens of a first prompt, and of the longest response to it."""

    prompt: int
    response: int


def check_room(
    model: LanguageModel,
    make_env: Callable[[], TextEnv],
    chosen: Mapping[str, Sequence[Task]],
    config: Config,
    remedies: Sequence[str],
    shorter: str = "",
) -> None:
    """Raise `UserError` if no first prompt, of a few tasks of a split, fits the context with the longest response.

    Every episode would end with the reason `context` before its first step: nothing would be learned or measured.
    `remedies` tell the user how to get more context; `shorter` is another remedy if the response is too long.
    """
    limit, context = config.rollout.prompt_tokens or model.context, model.context
    for split, tasks in chosen.items():
        needs: list[_Need] = []
        for need in _needs(model, make_env, tasks, config):
            needs.append(need)
            if need.prompt <= limit and sum(need) <= context:
                break
        else:
            if needs:  # else their worlds failed, which is reported elsewhere
                prompt, response = min(needs, key=sum)
                prompts = f"the first prompts of {len(needs)} of its tasks have {prompt} tokens or more"
                begins = f"no episode of the split '{split}' can begin: {prompts}"
                if prompt > limit < context:
                    raise UserError(f"{begins}, above rollout.prompt_tokens = {limit}: raise that")
                beside = f"beside responses of {response} do not fit the model's context of {context}"
                helps = prompt < context and response == config.rollout.response_tokens  # else a command is that long
                raise UserError(f"{begins}, which {beside}: {either([shorter] * bool(shorter and helps), remedies)}")


def check_room_of_run(model: LanguageModel, make_env: Callable[[], TextEnv], config: Config) -> None:
    """Raise `UserError` if a run with this model could not begin an episode of one of its splits."""
    with opened(make_env()) as env:
        names = (config.env.split, *config.eval.split)
        splits = {name: listed_tasks(env, name, config.env.name) for name in names}
    less = ["set rollout.show_admissible = false"] * config.rollout.show_admissible
    check_room(model, make_env, splits, config, [*less, longer_context(config)], "lower rollout.response_tokens")


def longer_context(config: Config) -> str:
    """Return the advice that gives a run's model a longer context."""
    path = config.model.path or config.warm_start.path
    return "take a model with a longer context" if path else "raise model.context"


def either(*remedies: Sequence[str]) -> str:
    """Join remedies in words: "a", "a, or b", "a, b, or c"."""
    *first, last = (remedy for some in remedies for remedy in some)
    return f"{', '.join(first)}, or {last}" if first else last


def _needs(
    model: LanguageModel, make_env: Callable[[], TextEnv], tasks: Sequence[Task], config: Config
) -> Iterator[_Need]:
    form = replace(form_of(config), prompt_tokens=0)
    renderer, settings = renderer_of(model, form, context=sys.maxsize), play_settings(config, 0.0)
    commands, worlds = Commands(model.codec, renderer), vector_of(make_env)
    try:
        for place in range(0, len(tasks), max(1, len(tasks) // SAMPLE))[:SAMPLE]:
            (observation,) = worlds.reset([Start(0, tasks[place], tasks[place].seed)])
            if observation is None:
                continue
            room = room_for(observation, commands, settings)
            prompt = renderer.prompt((), observation, SegmentState(), room)
            assert prompt is not None
            yield _Need(len(prompt.ids), room)
    finally:
        worlds.finish()
