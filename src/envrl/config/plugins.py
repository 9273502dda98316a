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

    A file with a hash stands in a recipe that a run was made with, and is not loaded (`recorded_plugins`). Raises
    `UserError` if a file cannot be loaded.
    """
    return tuple(dict.fromkeys(_recorded(file) if _PIN in file else _loaded(folder / file) for file in files))


def recorded_plugins(files: Iterable[str]) -> tuple[str, ...]:
    """Return the files that a run or a record names, and load none: a stranger's folder runs no code.

    Raises `UserError` if the user has not named one already, if it has changed, and if its hash is not given.
    """
    return tuple(dict.fromkeys(map(_recorded, files)))


def _loaded(file: Path) -> str:
    digest = load_plugin(file)
    _LOADED[file.name] = digest
    return f"{file.name}{_PIN}{digest}"


def _recorded(pinned: str) -> str:
    name, _, digest = pinned.partition(_PIN)
    if not digest:
        raise UserError(
            f"the plug-in '{name}' is named without the SHA-256 that a run records, and what a run names is never "
            "loaded: give it by --plugin, and take it out of there"
        )
    if digest not in _LOADED.values():
        if name in _LOADED:
            raise UserError(
                f"the plug-in '{name}' is another file than the run was made with (SHA-256 {_LOADED[name][:12]}…, then "
                f"{digest[:12]}…): give the one of then by --plugin"
            )
        raise UserError(f"the run was made with the plug-in '{name}', which a run never loads by itself: --plugin FILE")
    return pinned
