"""Throughput of a world: random play on one core, every observation with its admissible commands."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

from envrl.envs.answers import opened, what_happened
from envrl.envs.protocol import SavableEnv, TextEnv, draw_command
from envrl.envs.registry import make
from envrl.errors import RunError, UserError
from envrl.types import Observation, Task

EPISODE_STEPS = 30
GAMES = 100
LOADING = 20.0  # seconds
_SPLITS = ("valid_seen", "valid", "train", "test", "all")


def bench_env(
    name: str, data: str | None = "", seconds: float = 2.0, seed: int = 0, games: int = GAMES
) -> dict[str, Any]:
    """Return what random play of a world costs, as numbers for JSON.

    Up to `games` tasks, spread over a split, are played in turn for `seconds`, 30 steps an episode at most (of a slow
    world as many as are read in 20 seconds); `steps_per_second` counts the time of `step` and of choosing the command.
    `load_ms` is the first reset of a task, reading it included, `reset_us` a later one; `save_us` and
    `load_us` are of an episode's state; all are medians.
    Raises `UserError` for an unknown world, missing data, or no time to measure in, `RunError` where the world fails.
    """
    if not seconds > 0:
        raise UserError(f"a benchmark needs more than 0 seconds, not {seconds}")
    with opened(make(name, **({"data": data} if data else {}))) as env:
        try:
            return {"env": name, **_measured(env, seconds, seed, games)}
        except (UserError, RunError):
            raise
        except Exception as error:  # whatever a user's world may raise
            raise RunError(f"the world '{name}' failed: {what_happened(error)}") from error


def _measured(env: TextEnv, seconds: float, seed: int, games: int) -> dict[str, Any]:
    began = time.perf_counter()
    split, tasks = _tasks(env, games)
    listing = time.perf_counter() - began
    loads = _loads(env, tasks, seed)
    tasks = tasks[: len(loads)]
    return {
        "split": split,
        "games": len(tasks),
        **_play(env, tasks, seconds, seed),
        "list_ms": round(listing * 1e3, 3),
        "load_ms": round(statistics.median(loads) * 1e3, 4),
        **_saving(env, tasks[0], seed),
    }


def _tasks(env: TextEnv, games: int) -> tuple[str, list[Task]]:
    """Return the first split that the world has, and up to `games` of its tasks, evenly spaced."""
    problem: UserError | None = None
    for split in _SPLITS:
        try:
            tasks = env.tasks(split)
        except UserError as error:
            problem = problem or error
            continue
        if len(tasks):
            count = min(games, len(tasks))
            return split, [tasks[index * len(tasks) // count] for index in range(count)]
    raise problem or UserError(f"the world has no tasks in any of the splits {', '.join(_SPLITS)}")


def _loads(env: TextEnv, tasks: list[Task], seed: int) -> list[float]:
    """Return the seconds that the first reset of each task takes; a slow world loads fewer tasks."""
    loads: list[float] = []
    while len(loads) < len(tasks) and sum(loads) < LOADING:
        loads.append(_timed_reset(env, tasks[len(loads)], seed)[0])
    return loads


def _timed_reset(env: TextEnv, task: Task, seed: int) -> tuple[float, Observation]:
    began = time.perf_counter()
    observation = env.reset(task, seed=seed)
    return time.perf_counter() - began, observation


def _play(env: TextEnv, tasks: list[Task], seconds: float, seed: int) -> dict[str, Any]:
    """Play the tasks in turn until `seconds` of steps have been timed."""
    generator = random.Random(seed)
    draw = generator.random
    spent, steps, episodes, wins, commands = 0.0, 0, 0, 0, 0
    resets: list[float] = []
    while spent < seconds:
        reset, observation = _timed_reset(env, tasks[episodes % len(tasks)], seed)
        resets.append(reset)
        episodes += 1
        began = time.perf_counter()
        for _ in range(EPISODE_STEPS):
            offered = observation.admissible or ("look",)
            if observation.templates:
                step = env.step(draw_command(observation, generator) or "look")
            else:
                step = env.step(offered[int(draw() * len(offered))])
            observation = step.observation
            steps += 1
            commands += len(offered)
            if step.done:
                wins += step.success
                break
        spent += time.perf_counter() - began
    rate = steps / spent
    return {
        "steps_per_second": round(rate) if rate >= 100 else round(rate, 2),
        "steps": steps,
        "episodes": episodes,
        "wins": wins,
        "admissible_mean": round(commands / steps, 2),
        "reset_us": round(statistics.median(resets) * 1e6, 2),
    }


def _saving(env: TextEnv, task: Task, seed: int) -> dict[str, float]:
    """Time saving and loading some steps into an episode; nothing where the world does not offer it."""
    if not isinstance(env, SavableEnv):
        return {}
    observation = env.reset(task, seed=seed)
    for _ in range(EPISODE_STEPS // 2):
        observation = env.step((observation.admissible or ("look",))[0]).observation
    saves, loads = [], []
    for _ in range(200):
        began = time.perf_counter()
        state = env.save()
        saved = time.perf_counter()
        env.load(state)
        saves.append(saved - began)
        loads.append(time.perf_counter() - saved)
    return {
        "save_us": round(statistics.median(saves) * 1e6, 2),
        "load_us": round(statistics.median(loads) * 1e6, 2),
    }
