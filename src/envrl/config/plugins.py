"""A user's plug-in files: loaded only if the user names them, and pinned by their hash in a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from envrl.errors import UserError
from envrl.registry import load_plugin

_PIN = "#sha256="
"""Separates a file's name from its hash in the configuration of a run."""

_LOADED: dict[str, str] = {}
"""SHA-256 of the files loaded so far, by name."""


def load_plugins(files: Iterable[str], folder: Path = Path()) -> tuple[str, ...]:
    """Load files, relative to `folder`, and return them in the form that a run records: `mine.py#sha256=…`.

    A recorded file is never loaded (a run folder from a stranger runs no code): the user must have named it already.
    Raises `UserError` if the user did not, or the file has changed, and if a file cannot be loaded.
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
