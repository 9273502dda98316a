"""Whether plots can be drawn here; nothing is imported for it."""

from __future__ import annotations

from importlib.util import find_spec

from envrl.errors import UserError


def check_matplotlib(option: str) -> None:
    """Raise `UserError` where the plots cannot be drawn, before anything is written."""
    if find_spec("matplotlib") is None:
        raise UserError(f"{option} draws with matplotlib, which is not installed: pip install 'envrl[plots]'")
