"""What the user sees while a run goes on: a bar with rates and an ETA in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter:
    """Tells how a run goes, on standard error; results and refusals are not its business."""

    def __init__(self, *, every: float = 10.0) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.every = every
        self._bar: Progress | None = None
        self._last = 0.0

    def say(self, text: str) -> None:
        """Print one line."""
        if self._bar is not None:
            self._bar.console.print(text)
        elif self.console.is_terminal:
            self.console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def phase(self, name: str, total: int, done: int = 0) -> Iterator[Phase]:
        """Show a phase of `total` steps, `done` of them finished earlier."""
        if not self.console.is_terminal:
            yield Phase(self, name, total, None)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            self._bar = bar
            try:
                yield Phase(self, name, total, bar.add_task(name, total=total, completed=done, figures=""))
            finally:
                self._bar = None

    def show(self, phase: Phase, done: int, figures: str) -> None:
        if self._bar is not None and phase.bar_task is not None:
            self._bar.update(phase.bar_task, completed=done, total=phase.total, figures=figures)
            return
        now = time.monotonic()
        if done == phase.total or now - self._last >= self.every:
            self._last = now
            spent = now - phase.began
            fresh = max(done - phase.first, 1) if phase.first is not None else 1
            left = f", {spent / fresh * (phase.total - done):.0f} s left" if phase.first is not None else ""
            self.say(f"{phase.name} {done}/{phase.total}  {figures}{left}")
        if phase.first is None:
            phase.first, phase.began = done, now


class Phase:
    """One phase of a run as it is shown."""

    def __init__(self, reporter: Reporter, name: str, total: int, bar_task: Any) -> None:
        self.reporter, self.name, self.total, self.bar_task = reporter, name, total, bar_task
        self.began = time.monotonic()
        self.first: int | None = None

    def show(self, done: int, figures: Mapping[str, float], total: int | None = None) -> None:
        """Say that `done` steps are finished, with a few figures."""
        self.total = self.total if total is None else total
        text = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
        self.reporter.show(self, done, text)
