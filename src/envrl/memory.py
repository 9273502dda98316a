"""Memories: what a run keeps of past episodes beside its weights, and what of it a new episode is told.

A memory is made with the `Plan` of the run, asked when an episode begins, and given the episodes that were played. What
it keeps is a list of JSON entries, a line each of a checkpoint's `memory.jsonl`. `memories/` holds those that ship.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from envrl.types import Observation, Task, Trajectory


@dataclass(frozen=True, slots=True)
class Query:
    """What an episode that begins asks of the memory."""

    task: Task
    text: str
    """The task's sentence, or the whole first observation if it has none."""
    observation: Observation
    """The first one."""
    key: int
    """Seeds what is drawn for this episode: with the same key a memory recalls the same."""
    learning: bool = True
    """False in an evaluation, in which nothing is learned of what was recalled."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """An entry of a memory, and the text that an episode is told of it."""

    entry: int | str
    text: str


@dataclass(frozen=True, slots=True)
class Experience:
    """An episode that was played, and the entries that it was told.

    `text` is that of its `Query`, `score` its return in the world's own unit, without `rollout.reward_scale`.
    """

    trajectory: Trajectory
    text: str
    told: tuple[int | str, ...]
    score: float


class Memory(Protocol):
    """Decides what is kept of episodes, and what is told of them."""

    def recall(self, query: Query) -> Sequence[Recalled]:
        """Return what an episode is told, the most important entry first; the last ones give way to a full context.

        A function of the query and of what is kept: it changes nothing, and is asked again for the same.
        """
        ...

    def observe(self, experiences: Sequence[Experience], update: int) -> None:
        """Learn from the episodes of an update."""
        ...

    def state(self) -> list[Any]:
        """Return the entries, as JSON."""
        ...

    def load(self, state: list[Any]) -> None:
        """Take back what `state` returned."""
        ...
