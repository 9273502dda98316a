"""What a world is: one class with `tasks`, `reset` and `step`; `save` and `load` where it is cheap."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from envrl.types import Observation, Step, Task


@runtime_checkable
class TextEnv(Protocol):
    """A text world that plays one task at a time.

    Constructing it is cheap: nothing is read until it is needed. `step` never ends an episode for its length; that
    limit is the rollout's. A command that means nothing is answered in text, never by an exception. A `close()`, where
    there is one, is called when the world is not needed any more: at the end of an episode, mostly.
    """

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of a split in their fixed order; raises `UserError` for an unknown split or missing data."""
        ...

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start the task anew and return the first observation."""
        ...

    def step(self, action: str) -> Step:
        """Carry out one command; raises `RuntimeError` before the first `reset`."""
        ...


@runtime_checkable
class SavableEnv(TextEnv, Protocol):
    """A world whose state can be kept and restored exactly."""

    def save(self) -> Any:
        """Return the present state, unaffected by later steps."""
        ...

    def load(self, state: Any) -> None:
        """Go back to a saved state; the next answers are those that followed it."""
        ...


@runtime_checkable
class HasSubgoals(Protocol):
    """A world that knows how far an episode has come."""

    def subgoals(self) -> frozenset[str]:
        """Return the names of the parts of the task that hold at this moment; nothing before the first `reset`."""
        ...


@runtime_checkable
class HasFingerprint(Protocol):
    """A world on downloaded data that can say which data it is."""

    def fingerprint(self, split: str) -> str:
        """Return a SHA-256 over the content of the files that a split is made of, the same wherever they lie."""
        ...


@runtime_checkable
class HasContents(Protocol):
    """A world that can say what its tasks are made of."""

    def contents(self, tasks: Sequence[Task]) -> Iterable[Any]:
        """Yield the content of each task, then what they share, as JSON's values or frozen records of such.

        Equal contents play alike, wherever and in whatever files the data lies.
        """
        ...


def draw_command(observation: Observation, generator: random.Random) -> str | None:
    """Return one of the commands that the world would accept, with random words where they are free; None for none."""
    offered = (*(observation.admissible or ()), *(template for template in observation.templates if template.words))
    if not offered:
        return None
    drawn = generator.choice(offered)
    if isinstance(drawn, str):
        return drawn
    words = [word for word in drawn.words if generator.random() < 0.5] or [generator.choice(drawn.words)]
    return f"{drawn.before}{' '.join(words)}{drawn.after}"
