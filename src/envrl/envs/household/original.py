"""The worlds `alfworld-textworld` and `household-textworld`: our games, played by ALFWorld's own engine.

The engine is the packages `textworld` and `alfworld` with a planner compiled at their installation: tenths of a second
a reset, hundredths a step. It is for comparison, not for speed. It is not thread-safe; use processes.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib import import_module
from typing import Any
from weakref import finalize

from envrl.envs.household.export import INSTALL
from envrl.envs.household.sources import GameFiles, GeneratedGames, Source
from envrl.envs.household.world import Household
from envrl.errors import UserError
from envrl.types import Observation, Step, Task

_PACKAGES = ("textworld", "fast_downward", "alfworld")
_idle: list[Any] = []
"""Engines whose worlds are gone: each has a copy of the planner's library, which cannot be unloaded safely."""


def alfworld_textworld(data: str = "") -> Original:
    """Return the games of `alfworld`, played by the original engine; `data` is as there."""
    return Original(GameFiles(data or ""))


def household_textworld() -> Original:
    """Return the games of `household`, played by the original engine."""
    return Original(GeneratedGames())


class Original:
    """Household games in the original engine; tasks, walkthroughs and expert are those of `Household`."""

    slow = True
    """By default it is played in worker processes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._household = Household(source)
        self._engine: Any = None
        self._last: Step | None = None

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of a split, as `Household` does; raises `UserError` where the engine is not installed."""
        _require_packages()
        return self._household.tasks(split)

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start a game; `seed` changes nothing, since games are fixed. Raises `UserError` for a damaged game."""
        _require_packages()
        document = self._source.document(task)
        if self._engine is None:
            self._engine = _idle.pop() if _idle else _new_engine()
            finalize(self, _idle.append, self._engine)
        with _translator(task), _translated_once():
            self._engine.load(document)
            state = self._engine.reset()
        observation = _observation(state)
        self._last = Step(observation, 0.0, False, False)
        return observation

    def step(self, action: str) -> Step:
        """Carry out one command; as in the original's own environment, the last answer for ever after the end."""
        if self._last is None:
            raise RuntimeError("step was called before the first reset")
        if not self._last.done:
            state, score, done = self._engine.step(action)
            self._last = Step(_observation(state), float(score), bool(done), bool(state["won"]))
        return self._last

    def walkthrough(self, task: Task) -> tuple[str, ...]:
        """Return commands that win the game at the last of them."""
        return self._household.walkthrough(task)

    def expert(self, seed: int) -> Callable[[Observation], str]:
        """Return the scripted player of `Household`."""
        return self._household.expert(seed)


def _observation(state: Mapping[str, Any]) -> Observation:
    return Observation(state["feedback"], tuple(state["admissible_commands"]))


def _require_packages() -> None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ALFWorld's own engine is not installed ({', '.join(missing)}); get it with `{INSTALL}`")


def _new_engine() -> Any:
    engine, infos, demangler = _classes()
    return demangler(engine(infos(won=True, admissible_commands=True)))


@cache
def _classes() -> tuple[Any, Any, Any]:
    """Return the engine, the record of what it is to say, and ALFWorld's wrapper that names objects."""
    with _no_new_folder():
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler  # pyright: ignore[reportMissingImports]
        from textworld import EnvInfos  # pyright: ignore[reportMissingImports]
        from textworld.envs.pddl import PddlEnv  # pyright: ignore[reportMissingImports]
    _parse_once()
    return PddlEnv, EnvInfos, AlfredDemangler


def _parse_once() -> None:
    """Have the engine keep how it parsed a text: it parses the same commands and rules of grammar at every step."""
    for name in ("textworld.logic", "textworld.envs.pddl.logic", "textworld.envs.pddl.textgen"):
        parser: Any = import_module(name)._PARSER
        parser.parse = lru_cache(maxsize=2048)(parser.parse)


@contextmanager
def _translated_once() -> Iterator[None]:
    """Have the engine translate a game once, not four times: at `load` and `reset`, for its state and for plans.

    The translation for plans is one in which a search is faster; nothing here asks for a plan.
    """
    planner: Any = import_module("fast_downward")
    before = planner.pddl2sas
    once = lru_cache(maxsize=1)(before)
    planner.pddl2sas = lambda domain, problem, verbose=False, optimize=False: once(domain, problem, verbose)
    try:
        yield
    finally:
        planner.pddl2sas = before


@contextmanager
def _no_new_folder() -> Iterator[None]:
    """Keep `import alfworld` from making ~/.cache/alfworld and from setting $ALFWORLD_DATA for the whole process."""
    before = os.environ.get("ALFWORLD_DATA")
    os.environ["ALFWORLD_DATA"] = tempfile.gettempdir()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("ALFWORLD_DATA", None)
        else:
            os.environ["ALFWORLD_DATA"] = before


@contextmanager
def _translator(task: Task) -> Iterator[None]:
    """Undo and catch what the planner's translator does as a script: it changes `sys.argv`, and exits on bad PDDL."""
    before = sys.argv
    try:
        yield
    except SystemExit as error:
        raise UserError(f"the original engine refuses the game '{task.id}': {error}") from error
    finally:
        sys.argv = before
