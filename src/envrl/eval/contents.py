"""A SHA-256 over what the tasks of a set are made of, the same wherever and in whatever files their data lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from envrl.envs.answers import first_observation
from envrl.envs.protocol import HasContents, TextEnv
from envrl.types import Task


def contents_sha256(env: TextEnv, tasks: Mapping[str, Sequence[Task]]) -> str:
    """Return the SHA-256 of a set of tasks by split, one line a value: each split's tasks, then their contents.

    The contents are the world's own (`HasContents`: a game's facts; a goal, and the catalogue behind it), else the
    first observations. A line is JSON with sorted keys and sets.
    """
    whole = hashlib.sha256()
    for split, chosen in tasks.items():
        for value in ([split, *((task.id, task.kind, task.seed) for task in chosen)], *_contents(env, chosen)):
            whole.update(msgspec.json.encode(value, order="deterministic") + b"\n")
    return whole.hexdigest()


def _contents(env: TextEnv, tasks: Sequence[Task]) -> Iterable[Any]:
    if isinstance(env, HasContents):
        return env.contents(tasks)
    seen = (first_observation(env, task, task.seed) for task in tasks)
    return ((observation.text, observation.admissible) for observation in seen)
