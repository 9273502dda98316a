"""Runs in a process of their own that a test may kill at any of the moments that they go through.

A moment is a place where the program asks whether to stop (between turns and micro-batches) or touches a file of the
run. A killed process is killed by SIGKILL: nothing of it goes on to run.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import no_sync  # noqa: F401
from boxes import register
from envrl.config.load import load_recipe
from envrl.errors import Interrupted
from envrl.trainer.loop import train
from envrl.trainer.signals import StopRequest

PHASES = {
    "collect": "demonstrations",
    "_train_step": "imitation",
    "save_checkpoint": "checkpoint",
    "save_folder": "warm start saved",
    "evaluate": "evaluation",
    "play_episodes": "rollout",
    "accumulate": "optimiser step",
    "write_trajectories": "trajectories",
}
"""What a moment belongs to, by the outermost of these functions on the stack."""


class Launcher:
    """A process that has everything imported and forks a child for each run, so that a run starts at once."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def train(self, recipe: Path, run: Path, *, resume: bool, moment: int = 0, how: int = signal.SIGKILL) -> int:
        """Train in a process that sends itself the signal `how` at a moment (from 1; 0: never); return its status.

        Every moment's phase is written to `<run>.phases`, a line each.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(recipe), str(run), resume, moment, how]) + "\n")
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def phases(run: Path) -> list[str]:
    """Return the phase of every moment that the last process on a run went through."""
    return Path(f"{run}.phases").read_text().split("\n")[:-1]


def _child(recipe: str, run: str, resume: bool, moment: int, how: int) -> int:
    passed = 0
    log = open(f"{run}.phases", "w", buffering=1)  # noqa: SIM115

    def pass_moment() -> None:
        nonlocal passed
        passed += 1
        log.write(_phase() + "\n")
        if passed == moment:
            os.kill(os.getpid(), how)

    def on_event(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate"):
            path = arguments[0]
            if isinstance(path, str | os.PathLike) and str(path).startswith(run + os.sep):
                pass_moment()

    poll = StopRequest.poll

    def counted_poll(request: StopRequest) -> None:
        pass_moment()
        poll(request)

    StopRequest.poll = counted_poll
    sys.addaudithook(on_event)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        train(load_recipe(recipe), run, resume)
    except Interrupted:
        return 130
    return 0


def _phase() -> str:
    frame, found = sys._getframe(), "between"
    while frame is not None:  # not by traceback, which looks up the source of every line
        found = PHASES.get(frame.f_code.co_name, found)
        frame = frame.f_back
    return found


def essence(run: Path) -> dict[str, object]:
    """Return all that must be equal in two equal runs: weights, moments, logged figures, episodes; no times."""
    latest = run / "checkpoints" / "latest"
    result: dict[str, object] = {"latest": os.readlink(latest) if latest.is_symlink() else None}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(file.relative_to(run))
        if file.name in ("manifest.json", "state.json"):  # they know byte offsets, which depend on digits of seconds
            continue
        if file.parent == run and file.suffix == ".jsonl":
            result[name] = [_timeless(json.loads(line)) for line in file.read_text().splitlines()]
        else:
            result[name] = file.read_bytes()
    return result


def _timeless(record: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in record.items() if key not in ("seconds", "rate", "memory")}


def _serve() -> None:
    register()
    import_module("transformers.models.lfm2.modeling_lfm2")  # what transformers would import at the first use
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = _child(*json.loads(line))
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
