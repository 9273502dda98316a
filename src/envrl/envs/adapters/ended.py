"""What the worlds of other packages answer once an episode has ended."""

from __future__ import annotations

from envrl.types import Step


def ended(last: Step, action: str) -> Step | None:
    """Return the last answer again, without reward, where it ended the episode.

    Raises `TypeError` for a command that is no text.
    """
    if not isinstance(action, str):
        raise TypeError(f"a command is a text, not of type {type(action).__name__}")
    return Step(last.observation, 0.0, True, last.success) if last.done else None
