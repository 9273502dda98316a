"""A whole split in its fixed order, played by a model or a script: one line of eval.jsonl."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from envrl.config.schema import Config, EnvConfig
from envrl.envs.pool import Worlds
from envrl.envs.protocol import TextEnv
from envrl.envs.registry import maker
from envrl.envs.settings import WorldSettings, set_maker
from envrl.eval.probe import probe, probe_episodes
from envrl.eval.record import action_rates, success_summary, summarize
from envrl.models.copies import sampling_copy
from envrl.models.load import LanguageModel
from envrl.models.template import ChatTemplate, stops_of
from envrl.rollout.chats import ChatWording
from envrl.rollout.crowd import Crowd
from envrl.rollout.marks import MarksWording
from envrl.rollout.randomness import key_of
from envrl.rollout.runner import play_model, play_script
from envrl.rollout.scripts import make_script
from envrl.rollout.seats import Clock, PlaySettings
from envrl.rollout.wording import MARKS, Form, Wording
from envrl.types import Task, Trajectory

BATCH = 128
"""Episodes played at once; fixed, since log-probs depend on it in their last digits."""


PUBLISHED_DRAWS = 128
"""Episodes of an evaluation in the published protocol (`eval.protocol`), drawn with repeats."""


def chosen_tasks(env: TextEnv, split: str, config: Config, episodes: int) -> list[tuple[Task, int]]:
    """Return (task, member) of an evaluation's episodes: a split in its order (its first `episodes`, 0: all), or draws.

    The draws of `eval.protocol = "published"` are a function of (split, `eval.seed`); a task drawn again is played by a
    further member, with other dice.
    """
    tasks = list(env.tasks(split))
    if config.eval.protocol == "whole":
        return [(task, 0) for task in (tasks[:episodes] if episodes else tasks)]
    generator = np.random.Generator(np.random.PCG64(key_of(config.eval.seed, "draws", split)))
    drawn = generator.integers(len(tasks), size=PUBLISHED_DRAWS).tolist()[: episodes or None]
    return [(tasks[index], drawn[:place].count(index)) for place, index in enumerate(drawn)]


def env_maker(config: Config) -> Worlds:
    """Return a function that makes the recipe's world with its settings, and plays many at once by `env.workers`."""
    settings = WorldSettings(**{f.name: getattr(config.env, f.name) for f in fields(WorldSettings)})
    make_env = set_maker(maker(config.env.name, **env_options(config.env)), settings)
    return Worlds(make_env, config.env.workers, config.env.timeout)


def env_options(env: EnvConfig) -> dict[str, Any]:
    """Return what a recipe says to its world: the keys of `env` that are the world's, where they are not at rest."""
    own = {name: getattr(env, name) for name in ("data", "products", "goals", "nouns", "fixes", "compact")}
    return {name: value for name, value in own.items() if value}


def play_settings(config: Config, temperature: float, actions: str | None = None) -> PlaySettings:
    """Return how a recipe plays, at another temperature and maybe under another restriction."""
    rollout = config.rollout
    return PlaySettings(
        max_steps=config.env.max_steps,
        temperature=temperature,
        actions=actions or rollout.actions,
        response_tokens=rollout.response_tokens,
        slots=rollout.slots,
    )


def training_settings(config: Config) -> PlaySettings:
    """Return how a recipe plays the episodes that it learns from."""
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
    """Return what a recipe writes of an episode."""
    rollout, objective, warm = config.rollout, config.objective, config.warm_start
    in_pass = (objective.state_rows if objective.state_weight else warm.state_rows) == "in_pass" and (
        objective.state_weight > 0 or warm.state_weight > 0
    )
    return Form(
        layout=rollout.layout,
        history=rollout.history,
        show_admissible=rollout.show_admissible,
        repeat_task=rollout.repeat_task,
        in_pass=in_pass,
        format=rollout.format,
        summary=rollout.summary,
        prompt_tokens=rollout.prompt_tokens,
        system_message=rollout.system_message,
        template_arguments=config.model.template_arguments,
        state_question=objective.state_question,
        inverse_question=objective.inverse_question,
    )


def wording_of(model: LanguageModel, form: Form, context: int = 0) -> Wording:
    """Return what writes episodes for a model, of at most `context` tokens (0: what it takes).

    Raises `UserError` where its tokenizer cannot write the form.
    """
    context = context or model.context
    if form.format == MARKS:
        return MarksWording(model.codec, form, context)
    template = ChatTemplate(model.codec, stops_of(model.network, model.codec), form.template_arguments)
    return ChatWording(template, form, context)


def evaluate_split(
    model: LanguageModel,
    make_env: Callable[[], TextEnv],
    split: str,
    config: Config,
    *,
    episodes: int = 0,
    sampling: LanguageModel | None = None,
    poll: Callable[[], None] = lambda: None,
    crowd: Crowd | None = None,
) -> tuple[dict[str, Any], list[Trajectory]]:
    """Return the line of eval.jsonl for a split (its first `episodes` tasks, 0: all) and the trajectories behind it.

    `sampling` is the model's copy of the recipe's `rollout.precision`, made here where it is not given.
    """
    player = sampling or sampling_copy(model, config.rollout.precision)
    began, clock, crowd = time.perf_counter(), Clock(), crowd or Crowd()
    env, wording = make_env(), wording_of(model, form_of(config))
    chosen = chosen_tasks(env, split, config, episodes)

    def play(some: Sequence[tuple[Task, int]], actions: str) -> list[Trajectory]:
        settings = play_settings(config, config.eval.temperature, actions)

        def play_part(part: range) -> list[Trajectory]:
            tasks, members = zip(*(some[i] for i in part), strict=True)
            seed = config.eval.seed
            return play_model(player, wording, make_env, tasks, members, settings, seed=seed, clock=clock, poll=poll)

        return crowd.play(len(some), play_part, BATCH)

    played = play(chosen, config.rollout.actions)
    record: dict[str, Any] = {"split": split, **summarize(played)}
    if config.eval.free_episodes:
        shared = config.rollout.actions == "free"
        free = played if shared else play(chosen[: config.eval.free_episodes], "free")
        record |= {f"free/{name}": value for name, value in action_rates(free).items()}
        record["free/success_rate"] = success_summary(free)["success_rate"]
        record["free/episodes"] = len(free)
    if config.eval.probe_episodes:
        scripted = probe_episodes(
            env, env.tasks(split), config.eval.probe_episodes, config.env.max_steps, config.eval.seed
        )
        record |= probe(model, wording, scripted, poll)
    record["seconds"] = {"total": time.perf_counter() - began, "env": clock.env}
    return record, played


def evaluate_script(
    name: str, make_env: Callable[[], TextEnv], split: str, config: Config, *, episodes: int = 0
) -> tuple[dict[str, Any], list[Trajectory]]:
    """Return the same line for a script (random, walkthrough, expert), without what only a model has."""
    began = time.perf_counter()
    env = make_env()
    played = [
        play_script(env, task, make_script(name, env, task, config.eval.seed + member), config.env.max_steps)
        for task, member in chosen_tasks(env, split, config, episodes)
    ]
    record = {"split": split, **summarize(played), "seconds": {"total": time.perf_counter() - began}}
    return record, played
