"""Checks of what a caller passes directly, and of what a user's function returns: each raises a `UserError`."""

from __future__ import annotations

from typing import Any

from envrl.errors import UserError, suggest


def check_choice(owner: str, knob: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `UserError` if the value of a knob is not one of its choices."""
    if value not in choices:
        raise UserError(f"{owner}: {knob} cannot be {value!r}{suggest(str(value), choices)}")


def check_range(owner: str, knob: str, value: float, low: float, high: float) -> None:
    """Raise `UserError` if a number is outside [low, high] or is NaN."""
    if not low <= value <= high:
        bounds = f"between {low:g} and {high:g}" if high != float("inf") else f"{low:g} or more"
        raise UserError(f"{owner}: {knob} must be {bounds}, not {value!r}")


def check_one_a_token(what: str, given: Any, like_N: Any) -> None:
    """Raise `UserError` if a loss has not the shape of its tokens."""
    shape = getattr(given, "shape", None)
    if shape != like_N.shape:
        said = f"{given!r:.60}" if shape is None else f"shape {tuple(shape)}"
        raise UserError(f"{what} must return one loss a token, {len(like_N)} in all, not {said}")
