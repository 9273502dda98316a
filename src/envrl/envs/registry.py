"""The one registry of worlds: built-in ones, those of installed plug-ins (entry points `envrl.envs`), and your own."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from envrl.envs.protocol import TextEnv
from envrl.errors import UserError, suggest

EnvFactory = Callable[..., TextEnv]

_BUILT_IN = {
    "alfworld": "envrl.envs.household.world:alfworld",
    "alfworld-textworld": "envrl.envs.household.original:alfworld_textworld",
    "babyai": "envrl.envs.adapters.babyai:babyai",
    "frozenlake": "envrl.envs.adapters.frozen_lake:frozen_lake",
    "household": "envrl.envs.household.world:household",
    "household-textworld": "envrl.envs.household.original:household_textworld",
    "scienceworld": "envrl.envs.adapters.scienceworld_world:scienceworld",
    "sokoban": "envrl.envs.adapters.sokoban:sokoban",
    "textworld": "envrl.envs.adapters.textworld_world:textworld",
    "webshop": "envrl.envs.webshop.world:webshop",
}
_REGISTERED: dict[str, EnvFactory] = {}


class CannotMake(UserError):
    """A world could not be made, though its name and options are known; in the midst of a run this may pass."""


def register_env(name: str, factory: EnvFactory) -> None:
    """Make `factory(**options)` available as the world `name`; raises `UserError` where the name is taken."""
    if name in _BUILT_IN or _REGISTERED.get(name, factory) is not factory:
        raise UserError(f"there is already a world named '{name}'; register yours under another name")
    _REGISTERED[name] = factory


def env_names() -> list[str]:
    """Return the names of all worlds that `make` knows, sorted."""
    return sorted({*_BUILT_IN, *_REGISTERED, *_plugins()})


def make(name: str, **options: Any) -> TextEnv:
    """Return the world `name`; cheap, since nothing is read until it is needed.

    Options are the world's own (`data=DIR` for those on downloaded data). Raises `UserError` for an unknown name or
    option.
    """
    return _made(_factory(name), name, options)


def maker(name: str, **options: Any) -> Callable[[], TextEnv]:
    """Return a function that makes the world `name`, picklable where the factory of a registered world is.

    Another process knows worlds by their entry points and modules, and nothing of `register_env`.
    """
    factory = _REGISTERED.get(name)
    return partial(make, name, **options) if factory is None else partial(_made, factory, name, options)


@cache
def _plugins() -> dict[str, EntryPoint]:
    """Return the worlds of installed packages by name; looked up once, since that reads every package's metadata."""
    return {point.name: point for point in entry_points(group="envrl.envs")}


def _factory(name: str) -> EnvFactory:
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name not in _plugins():
        _plugins.cache_clear()  # it may have been installed since
    if name not in _plugins():
        raise UserError(f"unknown world '{name}'{suggest(name, env_names())}")
    return _loaded(name)


@cache
def _loaded(name: str) -> EnvFactory:
    point = _plugins()[name]
    try:
        return point.load()
    except Exception as error:  # a package may raise anything while it is imported
        raise CannotMake(
            f"the world '{name}' is '{point.value}', which cannot be imported ({type(error).__name__}: {error})"
        ) from error


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
