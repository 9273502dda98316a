"""A toy world whose worker processes die; apart, since they import it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from boxes import Boxes
from envrl.types import Observation, Step, Task


class Frail(Boxes):
    """The boxes, with workers that die at some tasks: once each, or always. Nothing befalls the process `owner`."""

    def __init__(self, notes: Path, owner: int, once: tuple[str, ...], always: tuple[str, ...] = ()) -> None:
        self.notes, self.owner, self.once, self.always = notes, owner, once, always

    def step(self, action: str) -> Step:
        mark = self.notes / self.task.id.replace("/", "-")
        ill_fated = self.task.id in self.always or (self.task.id in self.once and not mark.exists())
        if ill_fated and os.getpid() != self.owner:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)

    def reset(self, task: Task, seed: int = 0) -> Observation:
        self.task = task
        return super().reset(task, seed)
