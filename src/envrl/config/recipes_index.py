"""The recipes that ship with the package: their names, what each is, and their text."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable


def _folder() -> Traversable:
    return files("envrl.config") / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship, sorted."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """Return the TOML text of a recipe that ships; raises `FileNotFoundError` where there is none of that name."""
    return (_folder() / f"{name}.toml").read_text(encoding="utf-8")


def recipe_summary(name: str) -> str:
    """Return the first line of the comment that opens a recipe that ships."""
    first, _, _ = recipe_text(name).partition("\n")
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""
