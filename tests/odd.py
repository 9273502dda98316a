"""Toy worlds that answer in other types than they should, or fail; apart, since worker processes import them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np

from boxes import COMMANDS, Boxes
from envrl.types import Observation, Step, Task


class Tensor:
    """What a world with a network of its own may return: one number behind `item`."""

    def __init__(self, value: float) -> None:
        self.value = value

    def item(self) -> float:
        return self.value


READABLE: dict[str, Callable[[Step], Step]] = {
    "numpy": lambda s: replace(s, reward=np.float32(s.reward), done=np.bool_(s.done), success=np.bool_(s.success)),
    "0-d": lambda s: replace(s, reward=np.array(s.reward), done=np.array(s.done), success=np.array([s.success])),
    "tensor": lambda s: replace(s, reward=Tensor(s.reward), done=Tensor(s.done), success=Tensor(s.success)),
    "decimal": lambda s: replace(s, reward=Decimal(str(s.reward)), done=int(s.done), success=float(s.success)),
    "flag": lambda s: replace(s, reward=s.reward > 0, info=None),
    "text": lambda s: _said(s, text=np.str_(s.observation.text)),
    "list": lambda s: _said(s, admissible=list(COMMANDS)),
    "generator": lambda s: _said(s, admissible=(command for command in COMMANDS), templates=[]),
    "set": lambda s: _said(s, admissible=set(COMMANDS)),
    "array": lambda s: _said(s, admissible=np.array(COMMANDS)),
    "repeats": lambda s: _said(s, admissible=(*COMMANDS, *reversed(COMMANDS)), info=None),
}
"""Answers that mean what a plain one does."""

REFUSED: dict[str, tuple[Callable[[Step], Any], str]] = {
    "none": (lambda s: replace(s, reward=None), "the reward of its answer to 'open box 1' is None, not a number"),
    "nan": (lambda s: replace(s, reward=float("nan")), "the reward of its answer to 'open box 1' is nan, not a finite"),
    "inf": (lambda s: replace(s, reward=np.float32("inf")), "is inf, not a finite number"),
    "huge": (lambda s: replace(s, reward=10**400), "no number that a float can hold"),
    "words": (lambda s: replace(s, reward="1.0"), "is '1.0' (str), not a number"),
    "many": (lambda s: replace(s, reward=np.ones(2)), "is array([1., 1.]) (ndarray), not a number"),
    "done": (lambda s: replace(s, done=None), "done of its answer to 'open box 1' is None, neither True nor False"),
    "two": (
        lambda s: replace(s, success=2),
        "to 'open box 1' is 2 (int), neither True nor False",
    ),
    "early": (lambda s: replace(s, done=False, success=True), "says success without done"),
    "bytes": (lambda s: _said(s, text=b"x"), "the text of its answer to 'open box 1' is b'x' (bytes), not a text"),
    "number": (lambda s: _said(s, text=3), "the text of its answer to 'open box 1' is 3 (int), not a text"),
    "string": (lambda s: _said(s, admissible="look"), "lists its commands as 'look' (str), not in a tuple"),
    "numbers": (
        lambda s: _said(s, admissible=(1, 2)),
        "admissible command of its answer to 'open box 1' is 1 (int)",
    ),
    "blank": (lambda s: _said(s, admissible=("look", " ")), "lists an admissible command without text"),
    "info": (lambda s: replace(s, info=[1]), "the info of its answer to 'open box 1' is [1] (list), not a mapping"),
    "templates": (lambda s: _said(s, templates=("search[]",)), "not Templates"),
    "tuple": (lambda s: (s.observation, s.reward, s.done, False, {}), "(tuple), not a Step"),
    "gym": (lambda s: replace(s, observation=s.observation.text), "(str), not an Observation"),
    "nothing": (lambda s: None, "its answer to 'open box 1' is None, not a Step"),
}
"""Answers that mean nothing, and part of the sentence that says so."""


def _said(step: Step, **fields: Any) -> Step:
    return replace(step, observation=replace(step.observation, **fields))


class Odd(Boxes):
    """The boxes, with every answer (not the first observation) changed by a named function."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def step(self, action: str) -> Any:
        change = READABLE.get(self.kind) or REFUSED[self.kind][0]
        return change(super().step(action))


class Failing(Boxes):
    """The boxes; a step in some tasks fails, by an exception or by the end of the process, once each or always."""

    failed: ClassVar[set[str]] = set()

    def __init__(self, tasks: tuple[str, ...], always: bool, error: type[BaseException] = KeyError) -> None:
        self.tasks_that_fail, self.always, self.error = tasks, always, error

    def reset(self, task: Task, seed: int = 0) -> Observation:
        self.task = task
        return super().reset(task, seed)

    def step(self, action: str) -> Step:
        ill_fated = self.task.id in self.tasks_that_fail and (self.always or self.task.id not in self.failed)
        if ill_fated:
            self.failed.add(self.task.id)
            raise self.error("it fell over")
        return super().step(action)


class Closing(Boxes):
    """The boxes, each open from `reset` to `close`; `open` counts those of this process."""

    open = 0
    most = 0
    opened = 0

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.is_open = fails, False

    def reset(self, task: Task, seed: int = 0) -> Observation:
        self.close()
        self.is_open = True
        Closing.open += 1
        Closing.opened += 1
        Closing.most = max(Closing.most, Closing.open)
        return super().reset(task, seed)

    def step(self, action: str) -> Step:
        if self.fails:
            raise KeyError("it fell over")
        if not self.is_open:
            raise RuntimeError("step was called on a closed world")
        return super().step(action)

    def close(self) -> None:
        Closing.open -= self.is_open
        self.is_open = False
