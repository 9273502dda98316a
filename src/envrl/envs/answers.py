"""What a world says, made plain where it is taken: in this process, in a worker, by a script, by the contract test.

A world may answer with NumPy's numbers, tensors or `Decimal`, and list its commands in anything that can be iterated.
Behind this module an observation's text is a `str`, its commands a tuple of `str` without repeats, a reward a finite
`float`, `done` and `success` are `bool`. What cannot be read so is a `BadAnswer`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from numbers import Real
from typing import Any

from envrl.envs.protocol import TextEnv
from envrl.errors import UserError
from envrl.types import Observation, Step, Task, Template

_SHOWN = 60  # characters of a value or a command in a message
_MOST_COMMANDS = 1_000_000
_LOOKED_AT = 100  # tasks of a list that makes them when they are asked for


class BadAnswer(Exception):
    """What a world said that cannot be taken, and what belongs there."""


def first_observation(env: TextEnv, task: Task, seed: int) -> Observation:
    """Start a task and return the first observation, made plain; raises `BadAnswer`, and whatever the world raises."""
    return _observation(env.reset(task, seed=seed), "its first observation")


def answer(env: TextEnv, command: str) -> Step:
    """Carry out a command and return the world's answer, made plain; raises as `first_observation` does."""
    step: object = env.step(command)
    where = f"its answer to {shown(command)}"
    if not isinstance(step, Step):
        raise BadAnswer(f"{where} is {_named(step)}, not a Step")
    observation = _observation(step.observation, where)
    reward = _reward(step.reward, where)
    done, success = _flag(step.done, "done", where), _flag(step.success, "success", where)
    if success and not done:
        raise BadAnswer(f"{where} says success without done: an episode that is won is over")
    info = _info(step.info, where)
    same = observation is step.observation and done is step.done and success is step.success and info is step.info
    return step if same and reward is step.reward else Step(observation, reward, done, success, info)


def what_happened(error: BaseException) -> str:
    """Return what a world did, as the end of a sentence: a `BadAnswer`'s own words, else what was raised."""
    if isinstance(error, BadAnswer):
        return str(error)
    try:
        said = " ".join(str(error).split())
    except Exception:  # an exception's own __str__ may fail as well
        said = "without a message"
    return f"it raised {type(error).__name__}{': ' if said else ''}{said}"[:300]


def listed_tasks(env: TextEnv, split: str, name: str) -> Sequence[Task]:
    """Return the tasks of a split as a sequence; raises `UserError` where `name`, the world, cannot list them."""
    try:
        found: Any = env.tasks(split)
        tasks = found if hasattr(found, "__len__") and hasattr(found, "__getitem__") else tuple(found)
        some = tasks if isinstance(tasks, (list, tuple)) else tasks[:: max(1, len(tasks) // _LOOKED_AT)]
        other = next((task for task in some if not _is_task(task)), None)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the world '{name}' cannot list the tasks of the split '{split}': {what_happened(error)}"
        ) from error
    if other is not None:
        raise UserError(
            f"the world '{name}' lists {shown(other)} among the tasks of the split '{split}': each must be an "
            "envrl.types.Task, with a text for its id, split and kind, and a whole number for its seed"
        )
    return tasks


def close(env: TextEnv) -> None:
    """Have a world give up what it holds, where it has a `close`; a failure is said, since no answer depends on it."""
    closing: Callable[[], object] | None = getattr(env, "close", None)
    if closing is not None:
        try:
            closing()
        except Exception as error:  # a world may raise anything
            warnings.warn(f"closing a world of type {type(env).__name__} failed: {what_happened(error)}", stacklevel=2)


@contextmanager
def opened(env: TextEnv) -> Iterator[TextEnv]:
    """Close a world at the end of a block, however that ends."""
    try:
        yield env
    finally:
        close(env)


def shown(value: object) -> str:
    """Return a value for a message, at most 60 characters of it."""
    try:
        text = repr(value)
    except Exception:  # a world's own object
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _observation(value: object, where: str) -> Observation:
    if not isinstance(value, Observation):
        raise BadAnswer(f"{where} is {_named(value)}, not an Observation")
    text = value.text if type(value.text) is str else _text(value.text, f"the text of {where}")
    admissible = None if value.admissible is None else _commands(value.admissible, where)
    templates = value.templates if type(value.templates) is tuple else tuple(_items(value.templates, where))
    if not all(isinstance(template, Template) for template in templates):
        raise BadAnswer(f"the templates of {where} are {_named(value.templates)}, not Templates")
    info = _info(value.info, where)
    if text is value.text and admissible is value.admissible and templates is value.templates and info is value.info:
        return value
    return replace(value, text=text, admissible=admissible, templates=templates, info=info)


def _commands(value: object, where: str) -> tuple[str, ...]:
    """Return commands as a tuple, each once; those of a set in alphabetical order, since a set has none."""
    items = value if type(value) is tuple else tuple(_items(value, where))
    commands: tuple[str, ...] = items
    if not all(type(command) is str for command in items):
        commands = tuple(_text(command, f"an admissible command of {where}") for command in items)
    if isinstance(value, (set, frozenset)):
        commands = tuple(sorted(commands))
    if not all(command.strip() for command in commands):
        raise BadAnswer(f"{where} lists an admissible command without text")
    unique = dict.fromkeys(commands)
    return commands if len(unique) == len(commands) else tuple(unique)


def _items(value: object, where: str) -> Iterable[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise BadAnswer(f"{where} lists its commands as {_named(value)}, not in a tuple")
    items = list(islice(value, _MOST_COMMANDS + 1))
    if len(items) > _MOST_COMMANDS:
        raise BadAnswer(f"{where} lists more than {_MOST_COMMANDS:,} commands")
    return items


def _text(value: object, what: str) -> str:
    single = _single(value)
    if not isinstance(single, str):
        raise BadAnswer(f"{what} is {_named(value)}, not a text")
    return str.__str__(single)


def _reward(value: object, where: str) -> float:
    single = value if type(value) is float else _single(value)
    if not isinstance(single, (Real, Decimal)):
        raise BadAnswer(f"the reward of {where} is {_named(value)}, not a number")
    try:
        reward = float(single)
    except (ValueError, OverflowError) as error:
        raise BadAnswer(f"the reward of {where} is {shown(value)}, no number that a float can hold") from error
    if not math.isfinite(reward):
        raise BadAnswer(f"the reward of {where} is {reward}, not a finite number")
    return reward


def _flag(value: object, name: str, where: str) -> bool:
    single = value if type(value) is bool else _single(value)
    if not isinstance(single, Real) or single not in (0, 1):
        raise BadAnswer(f"{name} of {where} is {_named(value)}, neither True nor False")
    return bool(single)


def _info(value: object, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadAnswer(f"the info of {where} is {_named(value)}, not a mapping")
    return value


def _single(value: object) -> object:
    """Return what an array, a tensor or a NumPy scalar of one element holds; anything else as it is."""
    item = getattr(value, "item", None)
    if item is None or not callable(item):
        return value
    try:
        return item()
    except Exception:  # it holds several
        return value


def _named(value: object) -> str:
    """Return a value with its type: `None`, `'x' (str)`."""
    return "None" if value is None else f"{shown(value)} ({type(value).__name__})"


def _is_task(value: object) -> bool:
    return (
        isinstance(value, Task)
        and all(isinstance(text, str) for text in (value.id, value.split, value.kind))
        and isinstance(value.seed, int)
    )
