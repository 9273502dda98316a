"""Two worlds over the same tasks, played live with the same commands: what one answers, the other must answer too."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from envrl.envs.answers import answer, first_observation, listed_tasks, what_happened
from envrl.envs.check import ODD_COMMANDS, STEPS, spread
from envrl.envs.protocol import TextEnv
from envrl.envs.registry import make
from envrl.errors import UserError
from envrl.types import Observation, Step, Task

_AFTER_THE_END = 2  # commands played after a world said that it is done
_SHOWN = 160  # characters of an answer around the first place where two differ
_FIELDS = ("text", "admissible", "reward", "done", "success")
_Answer = Observation | Step | str
"""What a world answers; a text says what it raised."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two worlds part: step 0 is the first observation; `first` and `second` are the unlike field's values."""

    task: str
    step: int
    command: str
    field: str
    first: str
    second: str

    def __str__(self) -> str:
        after = f"step {self.step}, {_shortened(self.command)!r}" if self.step else "the first observation"
        return f"{self.task}\n  {after}: another {self.field}\n  {self.first}\n  {self.second}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two worlds compare; a game is left at its first difference, so there is at most one a game."""

    envs: tuple[str, str]
    split: str
    games: int
    steps: int
    differences: tuple[Difference, ...]

    @property
    def passed(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        first, second = self.envs
        lines = [str(difference) for difference in self.differences[:1]]
        return "\n".join(
            [
                *lines,
                f"{first} against {second}, split '{self.split}': {self.games} games, {self.steps} steps, "
                f"{len(self.differences)} differences",
            ]
        )


def compare_envs(
    first: TextEnv | str,
    second: TextEnv | str,
    *,
    data: str | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    split: str = "train",
    episodes: int = 8,
    seed: int = 0,
    steps: int = STEPS,
) -> Comparison:
    """Return how two worlds answer the same commands in `episodes` tasks spread over a split.

    A game takes up to `steps` commands: the beginning of a walkthrough where the first world has one, then what is
    admissible, was admissible before, is malformed or means nothing. Compared are texts, admissible commands and their
    order, reward, done and success. `settings` are those of the worlds that are given by name. Raises `UserError` for
    an unknown world or split, missing data, or other tasks.
    """
    shared, own = {"data": data} if data else {}, settings or {}
    names = tuple(env if isinstance(env, str) else type(env).__name__ for env in (first, second))
    one, other = (make(env, **shared, **own.get(env, {})) if isinstance(env, str) else env for env in (first, second))
    listed = listed_tasks(one, split, names[0])
    ids, others = {task.id for task in listed}, {task.id for task in listed_tasks(other, split, names[1])}
    if ids != others or not ids:
        raise UserError(
            f"'{names[0]}' and '{names[1]}' cannot be compared on split '{split}': they list {len(ids)} and "
            f"{len(others)} tasks there, and {len(ids & others)} ids are in both"
        )
    tasks = spread(listed, episodes)
    played = [_play(one, other, task, random.Random(f"{seed} {task.id}"), steps) for task in tasks]
    differences = tuple(difference for _, difference in played if difference is not None)
    return Comparison((names[0], names[1]), split, len(tasks), sum(count for count, _ in played), differences)


def _play(
    one: TextEnv, other: TextEnv, task: Task, generator: random.Random, steps: int
) -> tuple[int, Difference | None]:
    """Play one game in both worlds up to their first difference, and return how many steps that took."""
    answers = [_answer(partial(first_observation, env, task, task.seed)) for env in (one, other)]
    difference = _difference(task, 0, "", *answers)
    commands = _Commands(_walkthrough(one, task), generator)
    step, left = 0, steps
    while difference is None and left > 0 and not isinstance(answers[0], str):
        command = commands.after(answers[0])
        step += 1
        answers = [_answer(partial(answer, env, command)) for env in (one, other)]
        difference = _difference(task, step, command, *answers)
        ended = isinstance(answers[0], Step) and answers[0].done
        left = min(left - 1, _AFTER_THE_END) if ended else left - 1
    return step, difference


def _walkthrough(env: TextEnv, task: Task) -> Sequence[str]:
    walkthrough = getattr(env, "walkthrough", None)
    return tuple(walkthrough(task)) if walkthrough else ()


class _Commands:
    """The commands of one game: part of its walkthrough, at times all of it, then a mixture."""

    def __init__(self, walkthrough: Sequence[str], generator: random.Random) -> None:
        self._generator = generator
        whole = generator.random() < 0.4
        self._planned = list(walkthrough[: None if whole else generator.randint(0, len(walkthrough))])
        self._met: dict[str, None] = {}

    def after(self, said: Observation | Step) -> str:
        """Return the next command, given what the first world just said."""
        observation = said if isinstance(said, Observation) else said.observation
        offered = observation.admissible or ()
        self._met |= dict.fromkeys(offered)
        draw = self._generator.random()
        if self._planned and draw < 0.85:
            return self._planned.pop(0)
        if offered and draw < 0.7:
            return self._generator.choice(offered)
        if self._met and draw < 0.9:
            return self._altered(self._generator.choice(list(self._met)))
        return self._generator.choice(ODD_COMMANDS)

    def _altered(self, command: str) -> str:
        """Return a command as it was once admissible, or with a flaw."""
        words = command.split()
        swapped = [self._generator.choice(self._generator.choice(list(self._met)).split()), *words[1:]]
        flaws = (command, f" {command}\t", command.upper(), " ".join(words[:-1]), f"{command} 1", " ".join(swapped))
        return self._generator.choice(flaws)


def _answer(call: Callable[[], Observation | Step]) -> _Answer:
    try:
        return call()
    except Exception as error:  # what a world raises is a difference, unless the other raises the same
        return what_happened(error).removeprefix("it ")


def _difference(task: Task, step: int, command: str, first: _Answer, second: _Answer) -> Difference | None:
    fields = [_fields(said) for said in (first, second)]
    for name in _FIELDS:
        one, other = (values.get(name) for values in fields)
        if one != other:
            return Difference(task.id, step, command, name, *_excerpts(one, other))
    return None


def _fields(answer: _Answer) -> dict[str, object]:
    if isinstance(answer, str):
        return {"text": answer}
    if isinstance(answer, Observation):
        return {"text": answer.text, "admissible": answer.admissible}
    return _fields(answer.observation) | {"reward": answer.reward, "done": answer.done, "success": answer.success}


def _excerpts(one: object, other: object) -> tuple[str, str]:
    """Return two unlike values as texts, long ones from a little before the first character that differs."""
    texts = repr(one), repr(other)
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    start = max(0, same - 40)
    first, second = (f"{'…' if start else ''}{_shortened(text[start:])}" for text in texts)
    return first, second


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
