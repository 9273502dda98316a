"""The queue of a sweep: so many runs at a time, each `envrl train` in a process of its own.

A run that is recorded is left alone, one that was begun goes on, one that fails does not stop the others. Ctrl-C and
SIGTERM are passed on: every run saves its state before the sweep ends. Several sweeps of the same file may work at the
same time, also on several machines that share the folder: each run is held by one of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

from envrl.config.load import dump_config
from envrl.errors import Interrupted, RunError, UserError
from envrl.files import write_text
from envrl.locks import held
from envrl.processes import end_with, own_signals
from envrl.report.read import before_and_after, number
from envrl.report.results import read_result, write_result
from envrl.report.summary import duration
from envrl.sweep.plan import PlannedRun, Sweep, flagged
from envrl.sweep.state import Places, Status, seconds_of, status_of

_GLANCE = 0.2
"""Seconds between two looks at whether a run has ended."""
_HELD = "another sweep runs it"


@dataclass(slots=True)
class _Running:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    holds: ExitStack
    told: int = 0
    """How often it was told to stop."""


@dataclass(slots=True)
class Outcome:
    """How a queue ended: names of runs that were done before or now, that failed, and that others hold."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def run_queue(
    sweep: Sweep, runs: Sequence[PlannedRun], places: Places, jobs: int, threads: int, say: Callable[[str], None]
) -> Outcome:
    """Run what is not done yet of `runs`, of a sweep's arms; a line is said of each run that ends.

    The warm start that they share is made first, where it is not there; without `runs` it is all that is made.

    Raises `RunError` where the shared warm start fails, so that no run can begin, `Interrupted` after all runs saved.
    """
    for folder in (places.runs / "recipes", places.runs / "logs", places.results):
        folder.mkdir(parents=True, exist_ok=True)
    queue = _Queue(sweep, places, threads, say)
    start = sweep.warm_start()
    left = [run for run in runs if status_of(run, places) is not Status.RECORDED]
    with own_signals(queue.stop):  # the second one, too, which ends the runs at once
        if start is not None and (left or not runs) and status_of(start, places) is not Status.FINISHED:
            _make_warm_start(queue, start)
        return queue.work(runs, jobs)


def _make_warm_start(queue: _Queue, start: PlannedRun) -> None:
    outcome = queue.work([start], 1)
    if outcome.failed:
        raise RunError(f"the warm start that all runs share was not made: {queue.places.log(start.name)} says why")
    if outcome.others:
        raise RunError("the warm start that all runs share is being made by another sweep: wait for it")


class _Queue:
    """Starts runs, waits for them, records them."""

    def __init__(self, sweep: Sweep, places: Places, threads: int, say: Callable[[str], None]) -> None:
        self.sweep, self.places, self.threads, self.say = sweep, places, threads, say
        self.running: list[_Running] = []
        self.stops, self.signal = 0, int(signal.SIGINT)
        """How often the sweep was told to stop, and by what signal."""

    def work(self, runs: Sequence[PlannedRun], jobs: int) -> Outcome:
        """Run what is not done of these, so many at a time."""
        outcome, waiting = Outcome(), list(runs)
        total, known = len(runs), {run.name: seconds_of(run, self.places) for run in runs}
        while waiting or self.running:
            while waiting and len(self.running) < jobs and not self.stops:
                self._start(waiting.pop(0), outcome)
            if self.stops and not self.running:
                done = f"{len(outcome.done)} of {total} done"
                raise Interrupted(f"interrupted, and all runs are saved: the same command goes on ({done})")
            self._tell()
            for ended in [each for each in self.running if each.process.poll() is not None]:
                self.running.remove(ended)
                words = self._end(ended, outcome)
                known[ended.run.name] = seconds_of(ended.run, self.places)
                left = total - len(outcome.done) - len(outcome.failed) - len(outcome.others)
                rest = _time_left(list(known.values()), left, jobs)
                self.say(f"[{total - left}/{total}] {ended.run.name}: {words}{rest}")
            time.sleep(_GLANCE if self.running else 0)
        return outcome

    def stop(self, number: int) -> None:
        """Have every run save its state and end; a second time: end at once."""
        self.stops, self.signal = self.stops + 1, number

    def _tell(self) -> None:
        for each in self.running:
            for _ in range(self.stops - each.told):
                each.process.send_signal(self.signal)
            each.told = self.stops

    def _start(self, run: PlannedRun, outcome: Outcome) -> None:
        """Start a run where it is not done, and no other sweep holds it."""
        log = self.places.log(run.name)
        log.touch()
        holds = ExitStack()
        try:
            holds.enter_context(held(log, _HELD))
        except UserError:
            outcome.others.append(run.name)
            return
        status = status_of(run, self.places)
        if status in (Status.RECORDED, Status.FINISHED):
            self._record(run)
            outcome.done.append(run.name)
            holds.close()
            return
        self.running.append(_Running(run, self._process(run, status, log), holds))

    def _process(self, run: PlannedRun, status: Status, log: Path) -> subprocess.Popen[bytes]:
        folder = self.places.run(run.name)
        if status is Status.BEGUN:  # by its own configuration, which has what was left to the machine
            asked = [str(folder / "config.toml"), "--run", str(folder), "--resume"]
        else:
            config = replace(run.config, train=replace(run.config.train, threads=self.threads))
            recipe = self.places.recipe(run.name)
            write_text(recipe, dump_config(config))
            asked = [str(recipe), "--run", str(folder)]
        parent = os.getpid()
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "envrl", "train", *asked, *flagged(self.sweep.plugins)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(self.threads)},
                start_new_session=True,  # Ctrl-C comes from the sweep alone, once
                preexec_fn=lambda: end_with(parent, signal.SIGTERM),
            )

    def _end(self, ended: _Running, outcome: Outcome) -> str:
        """Record a run that has ended well; return in words how it ended."""
        run, status = ended.run, ended.process.returncode
        with ended.holds:
            if status == 0:
                self._record(run)
                outcome.done.append(run.name)
                return self._learned(run) if run.arm else "the warm start that all runs share is made"
            if self.stops:
                return "interrupted, saved"
            outcome.failed.append(run.name)
            log = self.places.log(run.name)
            how = f"was ended by signal {-status}" if status < 0 else f"failed with status {status}"
            return f"{how}: {_last_line(log)} ({log})"

    def _record(self, run: PlannedRun) -> None:
        if run.arm and not self.places.record(run.name).is_file():
            write_result(self.places.run(run.name), self.places.record(run.name))

    def _learned(self, run: PlannedRun) -> str:
        """Return success before and after RL on each split, and the time taken."""
        parts = []
        for split, records in read_result(self.places.record(run.name)).evals.items():
            rates = [number(each, "success_rate") for each in before_and_after(records) if each]
            parts.append(f"{split} {' -> '.join(f'{100 * rate:.1f}' for rate in rates if rate is not None)} %")
        return ", ".join([*parts, duration(seconds_of(run, self.places) or 0.0)])


def _time_left(seconds: Sequence[float | None], left: int, jobs: int) -> str:
    known = [each for each in seconds if each]
    if not left or not known:
        return ""
    return f"; {left} left, about {duration(mean(known) * left / jobs)}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"
