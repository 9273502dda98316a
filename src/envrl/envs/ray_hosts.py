"""Workers on the nodes of a Ray cluster (`env.place = "ray"`): each is a child of an actor that Ray has placed.

A worker there is the program that it is here, and is talked to in the same way. Its connection to this machine is
joined to the socket that the pool has.
"""

from __future__ import annotations

import hmac
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from envrl import ranks
from envrl.clusters import joined
from envrl.envs.fork_server import interpreter
from envrl.envs.wire import READY, Answer, Failure, pack
from envrl.errors import UserError

VARIABLES = ("ALFWORLD_", "ENVRL_", "GLOO_", "HF_", "NCCL_", "TORCH_", "WEBSHOP_", "XDG_")
"""How those environment variables of this process begin that processes on other nodes are given."""
_LOST = -signal.SIGKILL
"""The status of a worker whose connection is gone: nobody reports its own."""
_SECRET = 32  # bytes
_SLICE = 0.2  # seconds between two looks at an actor that has not connected
_PAUSE = 1.0  # seconds until another actor is asked for where one was lost before it began
_CONNECT = 10.0  # seconds that a node has to reach this one
_CHUNK = 1 << 16


class WorldHost:
    """Starts a worker on the node where Ray has placed this actor; the worker ends when the actor does."""

    def begin(
        self, address: tuple[str, int], secret: bytes, folder: str, path: Sequence[str], variables: Mapping[str, str]
    ) -> None:
        """Connect to a pool, and start a worker in a folder that talks to it."""
        with socket.create_connection(address, _CONNECT) as wire:
            wire.settimeout(None)
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.sendall(secret)
            lifeline, self._held = os.pipe()
            call = f"worker.serve({wire.fileno()}, {lifeline}, {os.getpid()})"
            environment = {**os.environ, **variables}
            self._worker = interpreter(call, (wire.fileno(), lifeline), path=path, cwd=folder, env=environment)
            os.close(lifeline)


class RemoteWorker:
    """A worker on another node, with the methods of `subprocess.Popen` that a pool uses."""

    pid = 0

    def __init__(self, ray: Any, wire: int) -> None:
        """Ask Ray for an actor with a CPU; once it has connected, `wire` is joined to it. Nothing is waited for."""
        self._ray, self._killed, self._secret = ray, threading.Event(), secrets.token_bytes(_SECRET)
        self._listener = socket.create_server((ray.util.get_node_ip_address(), 0))
        self._begun = self._begin()
        self._thread = threading.Thread(target=self._join, args=(socket.socket(fileno=os.dup(wire)),), daemon=True)
        self._thread.start()

    def _begin(self) -> Any:
        """Ask for an actor that begins a worker; return what Ray will say of it."""
        self._actor = self._ray.remote(WorldHost).options(num_cpus=1, scheduling_strategy="SPREAD").remote()
        if self._killed.is_set():  # meanwhile
            self.kill()
        given = {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}
        address = self._listener.getsockname()[:2]
        return self._actor.begin.remote(address, self._secret, os.getcwd(), sys.path, given)

    def poll(self) -> int | None:
        """Return None while the worker is connected, or may yet be."""
        return None if self._thread.is_alive() else _LOST

    def kill(self) -> None:
        """End the actor, and its worker with it."""
        self._killed.set()
        if self._ray.is_initialized():  # else Ray has ended all of this program's
            self._ray.kill(self._actor)

    def wait(self, timeout: float) -> int:
        """Raise `TimeoutExpired`: how a process ends on another node is not reported."""
        raise subprocess.TimeoutExpired("a worker on another node", timeout)

    def _join(self, ours: socket.socket) -> None:
        """Wait for the worker, then copy bytes both ways until either side closes; or say why it does not come."""
        with ours, self._listener, suppress(OSError):
            try:
                theirs = self._accepted()
            except Exception as error:  # whatever the actor raised, or Ray says of its end
                why = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                ours.sendall(pack(Answer(READY, 0, Failure(why[0][:300], mistake=False))))
                return
            if theirs is not None:
                with theirs:
                    back = threading.Thread(target=_copy, args=(theirs, ours), daemon=True)
                    back.start()
                    _copy(ours, theirs)
                    back.join()

    def _accepted(self) -> socket.socket | None:
        """Return the connection of who knows the secret, None where the worker was killed before."""
        self._listener.settimeout(_SLICE)
        while not self._killed.is_set():
            try:
                theirs = self._listener.accept()[0]
            except TimeoutError:
                if self._ray.wait([self._begun], timeout=0)[0]:
                    self._check_begun()
                continue
            theirs.settimeout(_CONNECT)
            with suppress(OSError):
                if hmac.compare_digest(theirs.recv(_SECRET, socket.MSG_WAITALL), self._secret):
                    theirs.settimeout(None)
                    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return theirs
            theirs.close()
        return None

    def _check_begun(self) -> None:
        """Raise what the actor did; where it was lost before it could do anything, ask for another."""
        try:
            self._ray.get(self._begun)
        except self._ray.exceptions.RayActorError as error:
            if "creation task" in str(error):  # what it raises as it is made, so another would
                raise
            self._killed.wait(_PAUSE)
            self._begun = self._begin()


class RayHosts:
    """Where the workers of a pool come from, if they are on a Ray cluster; see `ForkServer`.

    The cluster is the one of `$RAY_ADDRESS`, which `--ray` sets, or that this machine belongs to.
    """

    pid = None

    def __init__(self, workers: int) -> None:
        """Raise `UserError` where no cluster answers, or it is too small for so many workers of each process."""
        self._ray = joined("env.place = 'ray'")
        there, wanted = int(self._ray.cluster_resources().get("CPU", 0)), workers * ranks.expected()
        if there < wanted:
            raise UserError(
                f"env.place = 'ray': the workers of all processes need {wanted} CPUs, and the Ray cluster has {there}: "
                "add nodes, or lower env.workers"
            )

    def worker(self, wire: int, lifeline: int) -> RemoteWorker:
        """Return a new worker, which will have the other end of a socket; it ends when that is closed."""
        return RemoteWorker(self._ray, wire)

    def end(self) -> None:
        """Nothing is left once the workers have ended."""


def check_ray_worlds(workers: int) -> None:
    """Raise `UserError` where worlds cannot be played on a Ray cluster from here."""
    if workers < 1:
        raise UserError(f"env.place = 'ray' needs the number of workers of a process: env.workers is {workers}")
    if find_spec("ray") is None:
        raise UserError("env.place = 'ray' needs Ray, which is not installed: pip install 'envrl[ray]'")


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes until one of the two is closed, then close both for the other direction, too."""
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
