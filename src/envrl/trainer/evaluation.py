"""Evaluations inside a run: whole splits in a fixed order, and what the policy knows of its world."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from envrl.config.schema import Config
from envrl.envs.protocol import TextEnv
from envrl.eval.probe import probe, probe_episodes
from envrl.eval.record import action_rates, success_summary, summarize
from envrl.models.load import LanguageModel
from envrl.rollout.auxiliary import Form
from envrl.rollout.runner import Clock, PlaySettings, batches, play_model
from envrl.types import Task, Trajectory

BATCH = 128


def play_settings(config: Config, temperature: float, actions: str | None = None) -> PlaySettings:
    """Return how a recipe plays, at another temperature and maybe under another restriction."""
    rollout = config.rollout
    return PlaySettings(
        max_steps=config.env.max_steps,
        temperature=temperature,
        layout=rollout.layout,
        history=rollout.history,
        actions=actions or rollout.actions,
        show_admissible=rollout.show_admissible,
        response_tokens=rollout.response_tokens,
        reward_scale=1.0,
    )


def auxiliary_form(config: Config) -> Form:
    """Return the form of the recipe's state and inverse rows."""
    return Form(config.rollout.layout, config.rollout.history, config.rollout.show_admissible)


def play_tasks(
    model: LanguageModel,
    make_env: Callable[[], TextEnv],
    tasks: Sequence[Task],
    settings: PlaySettings,
    seed: int,
    clock: Clock,
    poll: Callable[[], None],
) -> list[Trajectory]:
    """Return one episode a task, in order, whatever the size of the batches in which they are played."""
    played: list[Trajectory] = []
    for part in batches(len(tasks), BATCH):
        chosen = [tasks[i] for i in part]
        played += play_model(model, make_env, chosen, [0] * len(chosen), settings, seed=seed, clock=clock, poll=poll)
    return played


def evaluate_split(
    model: LanguageModel,
    make_env: Callable[[], TextEnv],
    split: str,
    config: Config,
    *,
    episodes: int = 0,
    poll: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], list[Trajectory]]:
    """Return the line of eval.jsonl for a split (`episodes` of it, 0: all) and the trajectories behind it."""
    began, clock = time.perf_counter(), Clock()
    env = make_env()
    tasks = list(env.tasks(split))
    chosen = tasks[:episodes] if episodes else tasks
    settings = play_settings(config, config.eval.temperature)
    played = play_tasks(model, make_env, chosen, settings, config.eval.seed, clock, poll)
    record: dict[str, Any] = {"split": split, **summarize(played)}
    if config.eval.free_episodes:
        if settings.actions == "free":
            free = played
        else:
            settings = play_settings(config, config.eval.temperature, "free")
            free = play_tasks(
                model, make_env, chosen[: config.eval.free_episodes], settings, config.eval.seed, clock, poll
            )
        record |= {f"free/{name}": value for name, value in action_rates(free).items()}
        record["free/success_rate"] = success_summary(free)["success_rate"]
        record["free/episodes"] = len(free)
    if config.eval.probe_episodes:
        scripted = probe_episodes(env, tasks, config.eval.probe_episodes, config.env.max_steps, config.eval.seed)
        record |= probe(model, scripted, auxiliary_form(config), poll)
    record["seconds"] = {"total": time.perf_counter() - began, "env": clock.env}
    return record, played
