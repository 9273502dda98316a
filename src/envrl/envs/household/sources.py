"""Where household games come from: ALFWorld's files, or the generator; parsed games are shared by all worlds."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from envrl.envs.data import data_folder, fingerprint_of, how_to_get
from envrl.envs.household.game import Game
from envrl.envs.household.pddl import check_game, load_game
from envrl.envs.household.problem import GOAL_KINDS, Problem
from envrl.errors import UserError, suggest
from envrl.types import Task

ALFWORLD_SPLITS = ("train", "valid_seen", "valid_unseen", "valid_train")
_GAME = "game.tw-pddl"
_KEPT_GAMES = 320  # more than both validation splits together; a game with its views takes 0.1 to 1 MB
_HOW_TO_GET = how_to_get("alfworld")


class Source(Protocol):
    """A collection of games."""

    @property
    def key(self) -> str:
        """What tells this collection from others."""
        ...

    def tasks(self, split: str) -> tuple[Sequence[Task], int]:
        """Return the tasks of a split, and how many games were left out as damaged; raises `UserError`."""
        ...

    def problem(self, task: Task) -> Problem:
        """Return a task's facts, read anew; raises `UserError` where there are none, or damaged ones."""
        ...

    def game(self, task: Task) -> Game:
        """Return a task's game, shared by all who play it; raises as `problem` does."""
        ...

    def document(self, task: Task) -> dict[str, Any]:
        """Return what a task's `game.tw-pddl` file holds, for the original engine; raises as `problem` does."""
        ...


class GameFiles:
    """The games of a folder `json_2.1.1` (`data` is that folder, or the one that holds it; empty: see `data_folder`).

    A split is listed by walking its folder, and every game is checked for being whole JSON with all its fields, goal
    and sections (0.2 ms each). Single facts are only read when a game is played.
    """

    def __init__(self, data: str) -> None:
        self._data = data

    @property
    def key(self) -> str:
        return str(self._root)

    @cached_property
    def _root(self) -> Path:
        data = data_folder("alfworld", self._data)
        root = data / "json_2.1.1" if (data / "json_2.1.1").is_dir() else data
        if not any((root / split).is_dir() for split in ALFWORLD_SPLITS):
            state = "is empty" if not any(data.iterdir()) else "holds neither json_2.1.1 nor a split such as valid_seen"
            raise UserError(f"the data folder '{data}' of the world 'alfworld' {state}; {_HOW_TO_GET}")
        return root

    def tasks(self, split: str) -> tuple[Sequence[Task], int]:
        if split not in ALFWORLD_SPLITS:
            raise UserError(f"the world 'alfworld' has no split '{split}'{suggest(split, ALFWORLD_SPLITS)}")
        found = sorted(_game_paths(self._root / split, split))
        if not found:
            raise UserError(f"the folder '{self._root / split}' holds no {_GAME}; {_HOW_TO_GET}")
        tasks, damage = [], []
        for path in found:
            try:
                check_game(self._root / path)
            except UserError as error:
                damage.append(str(error))
            else:
                tasks.append(Task(id=path, split=split, kind=path.split("/")[1].partition("-")[0]))
        if not tasks:
            raise UserError(f"no game of split '{split}' can be played; {damage[0]}")
        if damage:
            warnings.warn(f"left out {len(damage)} of {len(found)} games of split '{split}': {damage[0]}", stacklevel=3)
        return tuple(tasks), len(damage)

    def fingerprint(self, split: str) -> str:
        """Return which games a split is made of, damaged ones included: see `fingerprint_of`."""
        return fingerprint_of(self._root, _game_paths(self._root / split, split))

    def problem(self, task: Task) -> Problem:
        return load_game(self._root / task.id)

    def document(self, task: Task) -> dict[str, Any]:
        path = self._root / task.id
        check_game(path)
        return json.loads(path.read_bytes())

    def game(self, task: Task) -> Game:
        try:
            return game_of_file(f"{self._root}/{task.id}")
        except OSError as error:
            raise UserError(f"there is no game '{task.id}' in '{self._root}'; take one of env.tasks(split)") from error


class GeneratedGames:
    """The games of the generator: no data, each a pure function of its split and index."""

    key = "generated"

    def tasks(self, split: str) -> tuple[Sequence[Task], int]:
        from envrl.envs.household.generator import GeneratedTasks

        return GeneratedTasks(split), 0

    def problem(self, task: Task) -> Problem:
        from envrl.envs.household.generator import generate_problem, index_of

        return generate_problem(*index_of(task))

    def document(self, task: Task) -> dict[str, Any]:
        from envrl.envs.household.export import game_document

        return game_document(self.problem(task))

    def game(self, task: Task) -> Game:
        return _generated_game(task.id)


def game_of_file(path: str) -> Game:
    """Return the game of a `game.tw-pddl`, shared by all who play it; raises `OSError` where there is no such file.

    A file that has changed is read again; a damaged one raises `UserError`.
    """
    status = os.stat(path)
    return _game_of_file(path, status.st_mtime_ns, status.st_size)


def _game_paths(folder: Path, split: str) -> list[str]:
    """Return the games two folders below a split's, as paths below json_2.1.1.

    As in the original, tasks of other types, with movable receptacles or with sliced objects, are no text games.
    """
    if not folder.is_dir():
        return []
    paths = []
    for task in os.listdir(folder):
        within = os.path.join(folder, task)
        if task.partition("-")[0] not in GOAL_KINDS or "movable" in task or "Sliced" in task:
            continue
        trials = os.listdir(within) if os.path.isdir(within) else []
        paths += [f"{split}/{task}/{trial}/{_GAME}" for trial in trials if os.path.exists(f"{within}/{trial}/{_GAME}")]
    return paths


@lru_cache(maxsize=_KEPT_GAMES)
def _game_of_file(path: str, modified: int, size: int) -> Game:
    return Game(load_game(path))


@lru_cache(maxsize=_KEPT_GAMES)
def _generated_game(identifier: str) -> Game:
    return Game(GeneratedGames().problem(Task(id=identifier, split=identifier.partition("/")[0])))
