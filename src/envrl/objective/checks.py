"""Checks of settings that a caller passes directly, so that a wrong value raises a `UserError`."""

from __future__ import annotations

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
