"""A person plays a world in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, TextIO

from envrl.envs.answers import answer, first_observation, listed_tasks, opened, what_happened
from envrl.envs.protocol import TextEnv
from envrl.envs.registry import make
from envrl.errors import RunError, UserError
from envrl.types import Observation, Task

_INTRODUCTION = (
    "Type a command, its number in the list, or its beginning; `?` lists the commands, `? word` those with the word,\n"
    "`quit` leaves.\n"
)


def play(
    env: TextEnv | str,
    task: Task | None = None,
    *,
    split: str = "train",
    index: int = 0,
    data: str | None = None,
    settings: Mapping[str, Any] | None = None,
    input: TextIO | None = None,
    output: TextIO | None = None,
) -> bool:
    """Let a person play one task, `task` or number `index` of a split; returns whether it was done successfully.

    `env` is a world or the name of one, which is made with these settings. The game ends when the task is done, with
    `quit`, or with the input. Raises `UserError` for an unknown world, split or index, or missing data.
    """
    name = env if isinstance(env, str) else type(env).__name__
    options = {**(settings or {}), **({"data": data} if data else {})}
    own = make(env, **options) if isinstance(env, str) else None
    with opened(own) if own is not None else nullcontext(env) as world:
        assert not isinstance(world, str)
        task = _task(world, split, index, name) if task is None else task
        try:
            return _play(world, task, input or sys.stdin, output or sys.stdout)
        except (OSError, UserError):
            raise
        except Exception as error:  # a world may raise anything
            raise RunError(
                f"the world '{name}' failed in the task '{task.id}': {what_happened(error)}; 'envrl check-env {name}' "
                "tests a world"
            ) from error


def _play(world: TextEnv, task: Task, source: TextIO, screen: TextIO) -> bool:
    observation = first_observation(world, task, 0)
    screen.write(f"{_INTRODUCTION}\n{observation.text}\n")
    steps = 0
    while True:
        screen.write("\n> ")
        screen.flush()
        line = source.readline()
        words = line.strip()
        if not line or words in ("quit", "exit"):
            screen.write(f"\nLeft after {steps} steps.\n")
            return False
        if words.startswith("?"):
            screen.write(_listed(observation, words[1:].strip()))
            continue
        command, hint = _understood(words, observation.admissible)
        if hint:
            screen.write(hint)
            continue
        if command != words:
            screen.write(f"({command})\n")
        step = answer(world, command)
        steps += 1
        observation = step.observation
        screen.write(f"{observation.text}\n")
        if step.done:
            end = "Done" if step.success else "Over, and the task is not done"
            screen.write(f"\n{end}, after {steps} steps; reward {step.reward:g}.\n")
            return step.success


def _task(env: TextEnv, split: str, index: int, name: str) -> Task:
    tasks = listed_tasks(env, split, name)
    if not 0 <= index < len(tasks):
        raise UserError(f"split '{split}' has tasks 0 to {len(tasks) - 1}, not {index}")
    return tasks[index]


def _listed(observation: Observation, word: str) -> str:
    if observation.admissible is None and not observation.templates:
        return "This world does not list its commands.\n"
    listed = [f"{n:>3}  {c}\n" for n, c in enumerate(observation.admissible or (), start=1) if word in c]
    listed += [f"     {t}   with any words\n" for t in map(str, observation.templates) if word in t]
    return "".join(listed) or f"No command has the word '{word}'.\n"


def _understood(words: str, admissible: tuple[str, ...] | None) -> tuple[str, str]:
    """Return the command that was meant, or what to tell the player; what is unknown goes to the world as it is."""
    if not admissible or words in admissible:
        return words, ""
    if words.isdecimal():
        number = int(words)
        if 1 <= number <= len(admissible):
            return admissible[number - 1], ""
        return words, f"The list has numbers 1 to {len(admissible)}; `?` shows it.\n"
    meant = [command for command in admissible if words and command.startswith(words)]
    if len(meant) > 1:
        return words, f"Several commands begin so: {'; '.join(meant[:8])}{'; …' if len(meant) > 8 else ''}\n"
    return (meant[0] if meant else words), ""
