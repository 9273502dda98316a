"""Values of a recipe: which can be saved and computed with, and how a message shows one."""

from __future__ import annotations

import math
from typing import Any

LARGEST = 2**63 - 1
"""The largest TOML integer; above it, generators and arrays overflow."""


def usable(value: Any) -> bool:
    """Return whether a value can be saved and computed with: finite, within TOML's integers, valid text."""
    match value:
        case float():
            return math.isfinite(value)
        case int():
            return abs(value) <= LARGEST
        case str():
            return not any("\ud800" <= character <= "\udfff" or character == "\0" for character in value)
        case list():
            return all(usable(part) for part in value)
        case dict():
            return all(usable(part) for pair in value.items() for part in pair)
    return True


def show(value: Any) -> str:
    """Return a value as a recipe writes it, shortened to a readable length."""
    match value:
        case bool():
            text = str(value).lower()
        case str():
            text = repr(value)
        case list() | tuple():
            text = f"[{', '.join(show(part) for part in value)}]"
        case dict():
            text = "a table" if value else "{}"
        case int() if abs(value) > LARGEST:
            text = "a number of more than 64 bits"
        case _:
            text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
