"""Where this program keeps files of its own: what was downloaded, and what was built from it."""

from __future__ import annotations

import os
from pathlib import Path


def default_folder(name: str) -> Path:
    """Return where `envrl data get NAME` puts data: ${XDG_DATA_HOME:-~/.local/share}/envrl/NAME."""
    return _home("XDG_DATA_HOME", "~/.local/share") / "envrl" / name


def cache_folder(name: str) -> Path:
    """Return where a world keeps what it has built: ${XDG_CACHE_HOME:-~/.cache}/envrl/NAME, which need not exist."""
    return _home("XDG_CACHE_HOME", "~/.cache") / "envrl" / name


def _home(variable: str, otherwise: str) -> Path:
    named = os.environ.get(variable, "")
    # The XDG specification has relative paths ignored.
    return Path(named) if os.path.isabs(named) else Path(os.path.expanduser(otherwise))
