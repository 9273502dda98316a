"""Making worlds by name: built-in ones, those of installed packages, of files of plug-ins, and your own."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from envrl.envs.protocol import TextEnv
from envrl.errors import UserError
from envrl.registry import CannotImport, Entry, find, load_plugin, names, register

EnvFactory = Callable[..., TextEnv]


class CannotMake(UserError):
    """A world could not be made, though its name and options are known; in the midst of a run this may pass."""


def register_env(name: str, factory: EnvFactory) -> None:
    """Make `factory(**options)` available as the world `name`; raises `UserError` where the name is taken."""
    register("env", name)(factory)


def env_names() -> list[str]:
    """Return the names of all worlds that `make` knows, sorted."""
    return names("env")


def make(name: str, **options: Any) -> TextEnv:
    """Return the world `name`; cheap, since nothing is read until it is needed.

    Options are the world's own (`data=DIR` for those on downloaded data). Raises `UserError` for an unknown name or
    option.
    """
    return _made(_found(name).target, name, options)


def maker(name: str, **options: Any) -> Callable[[], TextEnv]:
    """Return a function that makes the world `name`, picklable where the factory of a registered world is.

    Another process knows worlds by their entry points, modules and files of plug-ins, and nothing of `register_env`.
    """
    entry = _found(name)
    if entry.file:
        return partial(_made_of_plugin, entry.file, name, options)
    return partial(make, name, **options) if entry.known_by_name else partial(_made, entry.target, name, options)


def _made_of_plugin(file: str, name: str, options: dict[str, Any]) -> TextEnv:
    load_plugin(Path(file))
    return make(name, **options)


def _found(name: str) -> Entry:
    try:
        return find("env", name)
    except CannotImport as error:
        raise CannotMake(str(error)) from error


def _made(factory: EnvFactory, name: str, options: dict[str, Any]) -> TextEnv:
    try:
        return factory(**options)
    except UserError:
        raise
    except Exception as error:  # a world may raise anything
        told = re.search("unexpected keyword argument|takes no arguments", str(error))
        if not isinstance(error, TypeError) or not told:
            raise CannotMake(f"the world '{name}' cannot be made ({type(error).__name__}: {error})"[:400]) from error
        named = re.search(r"argument '(\w+)'", str(error))
        what = f"the option '{named[1]}'" if named else f"options ({', '.join(options)})"
        raise UserError(f"the world '{name}' does not take {what}") from error
