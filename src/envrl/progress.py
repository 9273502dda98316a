"""What the user sees while work goes on: bars with rates and an ETA in a terminal, plain lines elsewhere.

A phase may have phases inside it, so that the lines say what is going on: "update 2/20 (95 s each, 28 min left):
evaluation of valid_seen 17/140 episodes, 1.3 s each, 2 min left".
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds before the first plain line: what is over sooner says nothing."""
LONGEST_SILENCE = 60.0
"""Seconds between two plain lines at most; from the first one on the silence doubles until it is that long."""


@contextmanager
def now_and_then(action: Callable[[], None], seconds: float = 0.5) -> Iterator[None]:
    """Call a function again and again while a block runs, from a thread, since the block may be busy for long."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Reporter:
    """Tells how work goes, on standard error; results and refusals are not its business."""

    def __init__(self, *, silent: bool = False) -> None:
        """`silent`: say nothing; of several processes that train one run, the first speaks."""
        self.console = Console(stderr=True, highlight=False, quiet=silent)
        self._silent = silent
        self._phases: list[Phase] = []
        self._bars: Progress | None = None
        self._lock = threading.RLock()
        self._silence, self._last = PATIENCE, 0.0

    def say(self, text: str) -> None:
        """Print one line."""
        if self._silent:
            return
        with self._lock:
            if self._bars is not None:
                self._bars.console.print(text, markup=False)
            elif self.console.is_terminal:
                self.console.print(text, markup=False)
            else:
                print(text, file=sys.stderr, flush=True)

    @property
    def innermost(self) -> Phase | None:
        """The phase that was begun last and is under way."""
        with self._lock:
            return self._phases[-1] if self._phases else None

    @contextmanager
    def phase(self, name: str, total: float = 0, done: float = 0, unit: str = "") -> Iterator[Phase]:
        """Show a phase of `total` units (0: unknown), `done` of them finished earlier, within the phase under way."""
        phase = Phase(self, name, total, done, unit)
        if self._phases:
            with self._shown(phase):
                yield phase
            return
        with self._live(), self._shown(phase):
            yield phase

    def over(self, items: Sequence[T], name: str, unit: str = "") -> Iterator[T]:
        """Yield the items, and show a phase while they are worked on."""
        with self.phase(name, len(items), unit=unit) as phase:
            for number, item in enumerate(items, 1):
                yield item
                phase.show(number)

    def update(self, phase: Phase) -> None:
        """Bring what is shown of a phase up to date."""
        if self._bars is not None and phase.task is not None:
            self._bars.update(
                phase.task, completed=phase.done, total=phase.total or None, count=phase.words(), pace=phase.pace()
            )
        elif self._bars is None and phase.figures and phase.done == phase.total:
            self.say(f"{phase.name}{phase.words()}")

    @contextmanager
    def _shown(self, phase: Phase) -> Iterator[None]:
        with self._lock:
            self._phases.append(phase)
            if self._bars is not None:
                phase.task = self._bars.add_task(phase.name, total=None, count="", pace="")
                self.update(phase)
        try:
            yield
        finally:
            with self._lock:
                self._phases.remove(phase)
                if self._bars is not None and phase.task is not None:
                    self._bars.remove_task(phase.task)

    @contextmanager
    def _live(self) -> Iterator[None]:
        """Draw bars while the block runs, or print a line now and then whatever the work is busy with."""
        if self.console.is_terminal:
            columns = ("{task.description}", "{task.fields[count]}", "{task.fields[pace]}")
            texts = [TextColumn(column, markup=False) for column in columns]
            shown = (SpinnerColumn(), texts[0], BarColumn(), *texts[1:], TimeElapsedColumn())
            with Progress(*shown, console=self.console, transient=True) as self._bars:
                try:
                    yield
                finally:
                    self._bars = None
            return
        self._silence, self._last = PATIENCE, time.monotonic()
        with now_and_then(self._say_line):
            yield

    def _say_line(self) -> None:
        """Print a line where there was none for long enough."""
        with self._lock:
            now = time.monotonic()
            if self._phases and now - self._last >= self._silence:
                self.say(self.line())
                self._last, self._silence = now, min(2 * self._silence, LONGEST_SILENCE)

    def line(self) -> str:
        """Return what is going on in a line: the phases from the outermost to the innermost."""
        *outer, last = self._phases
        around = [f"{phase.name}{phase.words()}{f' ({phase.pace()})' if phase.advanced else ''}: " for phase in outer]
        return f"{''.join(around)}{last.name}{last.words()}, {last.pace()}"


class Phase:
    """One phase of the work as it is shown."""

    def __init__(self, reporter: Reporter, name: str, total: float, done: float, unit: str) -> None:
        self.reporter, self.name, self.total, self.unit = reporter, name, total, unit
        self.done = self.first = done
        self.began = time.monotonic()
        self.figures = ""
        self.task: TaskID | None = None

    def show(self, done: float, figures: Mapping[str, float] | None = None, total: float | None = None) -> None:
        """Say that `done` units are finished (a part of one counts as such), with a few figures."""
        self.done = done
        self.total = self.total if total is None else total
        if figures is not None:
            self.figures = "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
        self.reporter.update(self)

    @property
    def advanced(self) -> bool:
        return bool(self.total) and self.done > self.first

    def words(self) -> str:
        """Return how much is done, and the figures: " 17/140 episodes  loss 1.2"."""
        count = f" {int(self.done)}/{int(self.total)}{f' {self.unit}' if self.unit else ''}" if self.total else ""
        return f"{count}{f'  {self.figures}' if self.figures else ''}"

    def pace(self) -> str:
        """Return the rate and the time that is left, or the time spent where nothing is known of these."""
        spent = time.monotonic() - self.began
        if not self.advanced:
            return duration(spent)
        each = spent / (self.done - self.first)
        rate = f"{each:.3g} s each" if each >= 1 else f"{1 / max(each, 1e-9):.3g} a second"
        return f"{rate}, {duration(each * max(self.total - self.done, 0))} left"


def duration(seconds: float) -> str:
    """Return a time in the largest unit that says something: "45 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
