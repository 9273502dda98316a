"""A worker process as its parent sees it: started, written to and read from without ever waiting for it, and killed."""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from weakref import finalize

from envrl.envs.fork_server import Fork, ForkServer
from envrl.envs.ray_hosts import RayHosts, RemoteWorker
from envrl.envs.wire import READY, Answer, Call, Failure, Hello, Inbox, pack

_START_SECONDS = 120.0  # longest time until a new worker says that it has begun
_SLICE = 0.5  # seconds; longest wait, and the most that a silence counts at once
_CHUNK = 1 << 16


class Lost(Exception):
    """A worker that cannot be used any more, and what happened."""


class WorkerProcess:
    """One worker; `send` and `receive` never block, so that no worker can hold up the run."""

    def __init__(self, make_env: bytes, source: ForkServer | RayHosts) -> None:
        self._wire, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        self._process = source.worker(theirs.fileno(), read_end)
        theirs.close()
        os.close(read_end)
        self._wire.setblocking(False)
        self._end = finalize(self, _end, self._process, self._wire, write_end)
        self._inbox, self._outbox = Inbox(), bytearray(pack(Hello(make_env)))
        self._silent, self._looked = 0.0, time.monotonic()
        self.begun, self._closed = False, False
        self.pid = self._process.pid

    def fileno(self) -> int:
        return self._wire.fileno()

    @property
    def has_more_to_send(self) -> bool:
        return bool(self._outbox)

    def send(self, call: Call) -> None:
        """Take a call for sending, and send what the worker can take now."""
        if not self._outbox:
            self._silent = 0.0  # it had nothing to do until now
        self._outbox += pack(call)
        self._flush()

    def receive(self) -> list[Any]:
        """Return the messages that have come, and send what is left to send; what went wrong is for `check` to say."""
        self._flush()
        messages: list[Any] = []
        try:
            while data := self._wire.recv(_CHUNK):
                messages += self._inbox.feed(data)
            self._closed = True
        except BlockingIOError:
            pass
        except OSError:
            self._closed = True
        if messages:
            self._silent = 0.0
        if messages and not self.begun:
            self._begin(messages.pop(0))
        return messages

    def _begin(self, message: object) -> None:
        if not isinstance(message, Answer) or message.number != READY:
            raise Lost("it answered rubbish")
        if isinstance(message.value, Failure):
            raise Lost(message.value.what)
        self.begun = True

    def check(self, timeout: float) -> None:
        """Raise `Lost` where the worker has ended, sent what is no message, or said nothing for `timeout` seconds.

        A long absence of this process itself (it was stopped, or the machine slept) counts as one short wait.
        """
        if self._inbox.garbled:
            raise Lost(f"it sent {self._inbox.garbled}")
        if self._closed:
            raise Lost(self._how_it_ended())
        now = time.monotonic()
        self._silent += min(now - self._looked, _SLICE)
        self._looked = now
        if self._silent > (timeout if self.begun else max(timeout, _START_SECONDS)):
            raise Lost(f"it gave no answer for {timeout:g} seconds")

    def has_ended(self) -> bool:
        """Return whether the process is gone."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End the process, whatever state it is in."""
        self._end()

    def _flush(self) -> None:
        try:
            while self._outbox:
                sent = self._wire.send(self._outbox[:_CHUNK])
                del self._outbox[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._outbox.clear()  # it is gone, as the next `receive` will find

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"it was killed by signal {-status}" if status < 0 else f"it ended with status {status}"


def wait(processes: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Return those workers, after at most half a second, that have sent something or can be sent more."""
    with selectors.DefaultSelector() as selector:
        for process in processes:
            writing = selectors.EVENT_WRITE if process.has_more_to_send else 0
            selector.register(process, selectors.EVENT_READ | writing)
        return [key.fileobj for key, _ in selector.select(_SLICE)]  # type: ignore[misc]


def _end(process: subprocess.Popen[bytes] | Fork | RemoteWorker, wire: socket.socket, lifeline: int) -> None:
    """Kill a worker and see it off the list of processes; also where its object or this process ends."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):  # a fork server that is stopped reports nothing
        process.wait(timeout=1.0)
    wire.close()
    os.close(lifeline)
