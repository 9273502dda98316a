"""Episodes that begin alike, in a world with `save` and `load`: what one has played is not played again by the others.

Worlds are deterministic, so what has been said and answered since the start is a state. Every episode is such a state
of one and the same world; where it leaves what is known, its state is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from envrl.envs.answers import answer, first_observation, opened
from envrl.envs.pool import Worlds
from envrl.envs.protocol import SavableEnv, TextEnv
from envrl.types import Observation, Step, Task


@contextmanager
def branching(make_env: Callable[[], TextEnv]) -> Iterator[Callable[[], TextEnv]]:
    """Yield what makes the worlds of episodes that begin alike, while the block runs.

    They are one world where it has `save` and `load` and is played in this process; else `make_env` makes them, and the
    commands of each are played from its start.
    """
    if isinstance(make_env, Worlds) and make_env.workers:
        yield make_env
        return
    with opened(make_env()) as env:
        if isinstance(env, SavableEnv):
            known: dict[tuple[Task, int], _Point] = {}
            yield lambda: Branch(env, known)
        else:
            yield make_env


@dataclass(frozen=True, slots=True)
class _Point:
    """What the world answered at a point of its episodes, its state there, and the points one command further."""

    said: Any
    state: Any
    after: dict[str, _Point] = field(default_factory=dict)


class Branch:
    """An episode in a world that others play in, too; see `TextEnv` for the methods."""

    def __init__(self, env: SavableEnv, known: dict[tuple[Task, int], _Point]) -> None:
        self._env, self._known = env, known
        self._at: _Point | None = None

    def tasks(self, split: str) -> Sequence[Task]:
        return self._env.tasks(split)

    def reset(self, task: Task, seed: int = 0) -> Observation:
        if (task, seed) not in self._known:
            said = first_observation(self._env, task, seed)
            self._known[task, seed] = _Point(said, self._env.save())
        self._at = self._known[task, seed]
        return self._at.said

    def step(self, action: str) -> Step:
        """Carry out one command, or repeat the answer that another episode had to it here."""
        if self._at is None:
            raise RuntimeError("step was called before the first reset")
        if action not in self._at.after:
            self._env.load(self._at.state)
            said = answer(self._env, action)
            self._at.after[action] = _Point(said, self._env.save())
        self._at = self._at.after[action]
        return self._at.said
