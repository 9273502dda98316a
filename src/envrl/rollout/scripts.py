"""Policies that are not models: random play (the floor), the walkthrough and the world's expert (the ceilings)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from envrl.envs.protocol import TextEnv, draw_command
from envrl.errors import UserError, suggest
from envrl.rollout.randomness import key_of
from envrl.rollout.runner import Script
from envrl.types import Task


@runtime_checkable
class HasWalkthrough(Protocol):
    """A world that knows how its tasks are solved."""

    def walkthrough(self, task: Task) -> Sequence[str]: ...


@runtime_checkable
class HasExpert(Protocol):
    """A world with a scripted player that uses only what it sees; a fresh one is made for every episode."""

    def expert(self, seed: int) -> Script: ...


def random_script(seed: int) -> Script:
    """Return a script that draws uniformly from what the world would accept, hidden (`env.hide_admissible`) or not."""
    generator = random.Random(seed)
    return lambda observation: draw_command(observation.info.get("plain", observation), generator) or "look"


def _walkthrough(env: TextEnv, task: Task, seed: int) -> Script:
    if not isinstance(env, HasWalkthrough):
        raise UserError("this world has no walkthroughs; use random or a model")
    commands = iter(env.walkthrough(task))
    return lambda observation: next(commands, "look")


def _expert(env: TextEnv, task: Task, seed: int) -> Script:
    if not isinstance(env, HasExpert):
        raise UserError("this world has no scripted expert; use random, or a model")
    return env.expert(key_of(seed, task.id))


def _random(env: TextEnv, task: Task, seed: int) -> Script:
    return random_script(key_of(seed, task.id))


SCRIPTS: dict[str, Callable[[TextEnv, Task, int], Script]] = {
    "random": _random,
    "walkthrough": _walkthrough,
    "expert": _expert,
}


def has_script(name: str, env: TextEnv) -> bool:
    """Return whether the world has what the named script needs."""
    needs: dict[str, type] = {"walkthrough": HasWalkthrough, "expert": HasExpert}
    return name not in needs or isinstance(env, needs[name])


def make_script(name: str, env: TextEnv, task: Task, seed: int) -> Script:
    """Return the named script for one episode of a task; raises `UserError` where the world has none such."""
    if name not in SCRIPTS:
        raise UserError(f"unknown script '{name}'{suggest(name, SCRIPTS)}")
    return SCRIPTS[name](env, task, seed)
