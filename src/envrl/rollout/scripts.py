"""Scripted policies: random play (the floor), the walkthrough and the world's expert (the ceilings).

They play without torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from envrl.envs.answers import answer, first_observation, what_happened
from envrl.envs.protocol import TextEnv, draw_command
from envrl.envs.vector import ATTEMPTS_HERE, put_aside
from envrl.errors import UserError, suggest
from envrl.randomness import key_of
from envrl.types import Action, Observation, StopReason, Task, Trajectory, Transition

Script = Callable[[Observation], str]
"""A function from observation to command; it may remember earlier observations."""


@runtime_checkable
class HasWalkthrough(Protocol):
    """A world that knows the solution of each task."""

    def walkthrough(self, task: Task) -> Sequence[str]: ...


@runtime_checkable
class HasExpert(Protocol):
    """A world with a scripted player that uses only its observations; each episode gets a fresh one."""

    def expert(self, seed: int) -> Script: ...


def random_script(seed: int) -> Script:
    """Return a script that draws uniformly from the admissible commands, even if `env.hide_admissible` hides them."""
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
    """Return whether the world supports the named script."""
    needs: dict[str, type] = {"walkthrough": HasWalkthrough, "expert": HasExpert}
    return name not in needs or isinstance(env, needs[name])


def make_script(name: str, env: TextEnv, task: Task, seed: int) -> Script:
    """Return the named script for one episode of a task; raise `UserError` if the world does not support it."""
    if name not in SCRIPTS:
        raise UserError(f"unknown script '{name}'{suggest(name, SCRIPTS)}")
    return SCRIPTS[name](env, task, seed)


def play_script(env: TextEnv, task: Task, script: Script, max_steps: int) -> Trajectory:
    """Play one episode with a script; its actions have no tokens.

    Raises whatever the world raises, and `BadAnswer` if the world breaks its protocol.
    """
    observation = first_observation(env, task, task.seed)
    transitions: list[Transition] = []
    while len(transitions) < max_steps:
        command = script(observation)
        step = answer(env, command)
        transitions.append(
            Transition(observation, Action(command), step.reward, step.observation, step.done, step.success)
        )
        observation = step.observation
        if step.done:
            return Trajectory(task, 0, tuple(transitions), (), StopReason.DONE)
    return Trajectory(task, 0, tuple(transitions), (), StopReason.MAX_STEPS)


def attempt_script(
    env: TextEnv, task: Task, make: Callable[[], Script], max_steps: int, set_aside: dict[str, str] | None = None
) -> Trajectory:
    """Play one episode with a script, and retry if the world fails; if it keeps failing, set the task aside.

    An episode that is set aside has no steps. `make` returns a fresh script; `set_aside` maps task ids to reasons and
    gains an entry. A `UserError` of the world is raised at once.
    """
    reason = ""
    for _ in range(ATTEMPTS_HERE):
        try:
            return play_script(env, task, make(), max_steps)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a world may raise anything, or exit the process
            reason = what_happened(error)
    put_aside({} if set_aside is None else set_aside, task, ATTEMPTS_HERE, reason)
    return Trajectory(task, 0, (), (), StopReason.SET_ASIDE)
