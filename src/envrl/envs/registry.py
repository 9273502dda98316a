"""The one registry of worlds: built-in ones, those of installed plug-ins (entry points `envrl.envs`), and your own."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
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


def register_env(name: str, factory: EnvFactory) -> None:
    """Make `factory(**options)` available as the world `name`; raises `UserError` where the name is taken."""
    if name in _BUILT_IN or _REGISTERED.get(name, factory) is not factory:
        raise UserError(f"there is already a world named '{name}'; register yours under another name")
    _REGISTERED[name] = factory


def env_names() -> list[str]:
    """Return the names of all worlds that `make` knows, sorted."""
    plugins = [point.name for point in entry_points(group="envrl.envs")]
    return sorted({*_BUILT_IN, *_REGISTERED, *plugins})


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


def _factory(name: str) -> EnvFactory:
    factory = _REGISTERED.get(name)
    if factory is None and name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        factory = getattr(importlib.import_module(module), attribute)
    if factory is None:
        for point in entry_points(group="envrl.envs", name=name):
            factory = point.load()
    if factory is None:
        raise UserError(f"unknown world '{name}'{suggest(name, env_names())}")
    return factory


def _made(factory: EnvFactory, name: str, options: dict[str, Any]) -> TextEnv:
    try:
        return factory(**options)
    except TypeError as error:
        if not re.search("unexpected keyword argument|takes no arguments", str(error)):
            raise
        named = re.search(r"argument '(\w+)'", str(error))
        what = f"the option '{named[1]}'" if named else f"options ({', '.join(options)})"
        raise UserError(f"the world '{name}' does not take {what}") from error
