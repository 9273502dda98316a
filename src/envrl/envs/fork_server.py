"""The fork server: one clean process of a pool, of which its workers are forks: they share what it has imported.

It is a fresh interpreter with a single thread; a fork of the run itself would have the run's threads, its accelerator
and gigabytes of its memory. The parent sends it the open files of each new worker, and keeps the end of a pipe on which
the fork server reports the worker's process id and at last its exit status.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from weakref import finalize

from envrl.envs.worker import end_with, serve

_BEGIN = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from envrl.envs import fork_server, worker; "
_NUMBER = struct.Struct("i")
_SLICE = 0.5  # seconds between two looks at a fork server that has not answered
_SLICES = 240  # looks until it is given up


class Fork:
    """A worker that the fork server forked, with the methods of `subprocess.Popen`; that alone can wait for it."""

    def __init__(self, pid: int, report: int) -> None:
        self.pid, self._report = pid, report
        self._status: int | None = None
        finalize(self, os.close, report)

    def poll(self) -> int | None:
        """Return the exit status, below 0 a signal, or None where it has not been reported."""
        if self._status is None and _comes(self._report, 0.0):
            data = os.read(self._report, _NUMBER.size)
            self._status = _NUMBER.unpack(data)[0] if data else -signal.SIGKILL  # it has died with the fork server
        return self._status

    def kill(self) -> None:
        """Send SIGKILL where the process has not ended."""
        if self.poll() is None:  # else another process may have the number
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        """Return the exit status; raises `TimeoutExpired` where none is reported in time."""
        _comes(self._report, timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout)
        return status


class ForkServer:
    """Where a pool's workers come from: a process that is begun at need, and anew where it ended or was stopped.

    Where it cannot be had (it needs Linux), each worker is an interpreter of its own.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the fork server; None where there is none at present."""
        return self._process.pid if self._process is not None else None

    def worker(self, wire: int, lifeline: int) -> Fork | subprocess.Popen[bytes]:
        """Return a new worker, which has these two open files."""
        for _ in range(2 if _can_be_had() else 0):
            if self._process is None:
                self._begin()
            worker = self._fork(wire, lifeline)
            if worker is not None:
                return worker
            self.end()
        return interpreter(f"worker.serve({wire}, {lifeline}, {os.getpid()})", (wire, lifeline))

    def end(self) -> None:
        """End the fork server, and with it the workers that it has."""
        if self._process is not None:
            self._end()
            self._process = None

    def _begin(self) -> None:
        self._requests, theirs = socket.socketpair()
        modules = [name for name in sys.modules if name.startswith("envrl.envs.") and ".adapters" not in name]
        self._process = interpreter(
            f"fork_server.serve_forks({theirs.fileno()}, {os.getpid()}, {modules})", (theirs.fileno(),)
        )
        theirs.close()
        self._end = finalize(self, _end, self._process, self._requests)

    def _fork(self, wire: int, lifeline: int) -> Fork | None:
        """Return a worker, or None where the fork server has ended, was stopped or gives no answer."""
        report, theirs = os.pipe()
        with suppress(OSError):  # it has ended, which the pipe shows as well
            socket.send_fds(self._requests, [b"w"], [wire, lifeline, theirs])
        os.close(theirs)
        for _ in range(_SLICES):
            if _comes(report, _SLICE):
                if data := os.read(report, _NUMBER.size):
                    return Fork(_NUMBER.unpack(data)[0], report)
                break
            if self._is_stopped():
                break
        os.close(report)
        return None

    def _is_stopped(self) -> bool:
        assert self._process is not None
        return os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None


def _comes(report: int, seconds: float) -> bool:
    """Wait until there is something to read, or the other end is gone; returns whether that is so."""
    poll = select.poll()
    poll.register(report, select.POLLIN)
    return bool(poll.poll(1e3 * seconds))


def _end(process: subprocess.Popen[bytes], requests: socket.socket) -> None:
    process.kill()
    process.wait()
    requests.close()


@cache
def _can_be_had() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # another system, or a kernel before 5.3
        return False
    return sys.platform == "linux"


def interpreter(
    call: str,
    files: Sequence[int],
    *,
    path: Sequence[str] | None = None,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a fresh interpreter that calls a function of `fork_server` or `worker`, with some of our open files.

    Its import path, folder and environment variables are ours unless others are given.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _BEGIN + call, json.dumps(list(path or sys.path))],
        cwd=cwd,
        env=env,
        pass_fds=files,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # what a world prints is not the command's output
        process_group=0,  # a Ctrl-C in the terminal is for the parent alone
    )


def serve_forks(connection: int, parent: int, modules: Sequence[str]) -> None:
    """Import modules, then fork a worker for each three open files that come from a socket, until it closes."""
    end_with(parent)
    gc.disable()  # what a collection frees, new objects would fill in pages that are shared
    for name in modules:
        with suppress(Exception):  # it will be the worker's to report
            importlib.import_module(name)
    gc.freeze()  # a worker's collections do not write to what it shares
    fork_server = os.getpid()
    with socket.socket(fileno=connection) as requests:
        files = _bear_workers(requests)
    if files is not None:
        gc.enable()
        os.setpgid(0, 0)
        serve(*files, fork_server)


def _bear_workers(requests: socket.socket) -> tuple[int, int] | None:
    """Fork workers and report their ends until there is no more to do: None; in each worker return its open files."""
    workers: dict[int, tuple[int, int]] = {}  # by a file that is readable at its end: process id, where to report it
    while True:
        for ready in select.select([requests, *workers], [], [])[0]:
            if isinstance(ready, int):
                pid, report = workers.pop(ready)
                _tell(report, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                _close(ready, report)
                continue
            files = socket.recv_fds(requests, 1, 3)[1]
            if not files:
                return None
            wire, lifeline, report = files
            pid = os.fork()
            if pid == 0:
                _close(report, *workers, *(report for _, report in workers.values()))
                return wire, lifeline
            workers[os.pidfd_open(pid)] = pid, report
            _tell(report, pid)
            _close(wire, lifeline)


def _tell(report: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(report, _NUMBER.pack(number))


def _close(*files: int) -> None:
    for file in files:
        os.close(file)
