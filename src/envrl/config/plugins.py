"""Files of the user's that register things: loaded by the user's own word alone, and pinned by their hash in a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from envrl.errors import UserError
from envrl.registry import load_plugin

_PIN = "#sha256="
"""What stands between a file's name and its hash in the configuration of a run."""

_LOADED: dict[str, str] = {}
"""SHA-256 of the files loaded so far, by name."""


def load_plugins(files: Iterable[str], folder: Path = Path()) -> tuple[str, ...]:
    """Load the files, whose paths start from `folder`, and return them as a run records them: `mine.py#sha256=…`.

    What a run has recorded is not loaded (a folder from a stranger runs no code): it must have been given already.
    Raises `UserError` where it was not, or is another file now, and where a file cannot be loaded.
    """
    return tuple(dict.fromkeys(_recorded(file) if _PIN in file else _loaded(folder / file) for file in files))


def _loaded(file: Path) -> str:
    digest = load_plugin(file)
    _LOADED[file.name] = digest
    return f"{file.name}{_PIN}{digest}"


def _recorded(pinned: str) -> str:
    name, _, digest = pinned.partition(_PIN)
    if digest not in _LOADED.values():
        if name in _LOADED:
            raise UserError(
                f"the plug-in '{name}' is another file than the run was made with (SHA-256 {_LOADED[name][:12]}…, then "
                f"{digest[:12]}…): give the one of then by --plugin"
            )
        raise UserError(f"the run was made with the plug-in '{name}', which a run never loads by itself: --plugin FILE")
    return pinned
