"""The built-in recipes: their names, summaries and text."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable


def _folder() -> Traversable:
    return files("envrl.config") / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the built-in recipes, sorted."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """Return the TOML text of a built-in recipe; raise `FileNotFoundError` if there is none of that name."""
    return (_folder() / f"{name}.toml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """Return the first line of a built-in recipe's opening comment."""
    first, _, _ = recipe_text(name).partition("\n")
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""
