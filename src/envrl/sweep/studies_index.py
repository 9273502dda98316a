"""The built-in sweeps: their names and text."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable


def _folder() -> Traversable:
    return files("envrl.sweep") / "studies"


def study_names() -> list[str]:
    """Return the names of the built-in sweeps, sorted."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


def study_text(name: str) -> str:
    """Return the TOML text of a built-in sweep; raise `FileNotFoundError` if there is none of that name."""
    return (_folder() / f"{name}.toml").read_text(encoding="utf-8")
