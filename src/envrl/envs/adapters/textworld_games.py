"""Games of TextWorld's own challenges, built when they are first played and kept in the user's cache."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from envrl.errors import RunError, UserError
from envrl.places import cache_folder
from envrl.types import Task

CHALLENGES: dict[str, dict[str, Any]] = {
    "coin_collector": {"level": 105},
    "treasure_hunter": {"level": 5},
    "cooking": {"recipe": 1, "take": 1, "go": 1, "open": True, "cook": True, "cut": True, "drop": False},
}
"""The settings of each challenge, as `tw-make tw-NAME` takes them: 10 rooms and a way of 4; 5 rooms; one kitchen."""
_SECONDS_TO_END = 5


def game_file(task: Task) -> Path:
    """Return the file of a task's game, building it (about a second) where it is not in the cache.

    Raises `UserError` where the cache cannot be written, and `RunError` where TextWorld cannot build the game.
    """
    path = cache_folder(f"textworld-{version('textworld')}") / task.kind / f"{task.seed:07d}.z8"
    if path.is_file():
        return path
    folder = next(parent for parent in path.parents if parent.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"games of TextWorld are kept in {path.parent}, which cannot be written: set XDG_CACHE_HOME")
    settings = dict(CHALLENGES[task.kind])
    if task.kind == "cooking":
        settings |= {"recipe_seed": task.seed + 1, "split": task.split}
    request = {"challenge": f"tw-{task.kind}", "settings": settings, "seed": task.seed, "path": str(path)}
    builder = _builder(os.getpid())
    assert builder.stdin is not None
    assert builder.stdout is not None
    try:
        builder.stdin.write(json.dumps(request) + "\n")
        builder.stdin.flush()
        answer = builder.stdout.readline()
    except OSError as error:
        raise RunError(f"TextWorld's generator ended while it built the task '{task.id}' ({error})") from error
    if answer != "\n":
        raise RunError(f"TextWorld's generator could not build the task '{task.id}': {answer.strip() or 'it ended'}")
    return path


@lru_cache(maxsize=1)
def _builder(process: int) -> subprocess.Popen[str]:
    """Start the builder for this process; it ends when its standard input is closed, and so with us."""
    builder = subprocess.Popen(
        [sys.executable, "-m", "envrl.envs.adapters.textworld_build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
    )
    atexit.register(_end, builder)
    return builder


def _end(builder: subprocess.Popen[str]) -> None:
    if builder.stdin is not None:
        builder.stdin.close()
    try:
        builder.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        builder.kill()
