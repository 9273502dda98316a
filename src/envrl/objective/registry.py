"""Functions by name, with knobs that are checked: a wrong name is a sentence, never a traceback."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from envrl.errors import UserError, suggest

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dictionary from names to functions whose unknown names raise `UserError`; `kind` is what an entry is called."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __missing__(self, name: str) -> T:
        raise UserError(f"unknown {self.kind} '{name}'{suggest(str(name), self)}")


def knobs_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the keyword-only parameters of a function with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_knobs(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UserError` for the first given knob that `owner` does not have."""
    known = list(known)
    for name in given:
        if name not in known:
            raise UserError(f"{owner} has no setting '{name}'{suggest(name, known)}")


def check_choice(owner: str, knob: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `UserError` where the value of a knob is none of its choices."""
    if value not in choices:
        raise UserError(f"{owner}: {knob} cannot be {value!r}{suggest(str(value), choices)}")


def check_range(owner: str, knob: str, value: float, low: float, high: float) -> None:
    """Raise `UserError` where a number is outside [low, high] or is not a number."""
    if not low <= value <= high:
        bounds = f"between {low:g} and {high:g}" if high != float("inf") else f"{low:g} or more"
        raise UserError(f"{owner}: {knob} must be {bounds}, not {value!r}")
