"""Settings of a function that were given by hand, checked: a wrong one is a sentence, never a traceback."""

from __future__ import annotations

from envrl.errors import UserError, suggest


def check_choice(owner: str, knob: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `UserError` where the value of a knob is none of its choices."""
    if value not in choices:
        raise UserError(f"{owner}: {knob} cannot be {value!r}{suggest(str(value), choices)}")


def check_range(owner: str, knob: str, value: float, low: float, high: float) -> None:
    """Raise `UserError` where a number is outside [low, high] or is not a number."""
    if not low <= value <= high:
        bounds = f"between {low:g} and {high:g}" if high != float("inf") else f"{low:g} or more"
        raise UserError(f"{owner}: {knob} must be {bounds}, not {value!r}")
