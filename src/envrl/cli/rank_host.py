"""One process of a run on the node where Ray has placed it; `RankHost` is made a Ray actor by `envrl.cli.cluster`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from envrl.errors import UserError
from envrl.files import lock_run

_CHUNK = 1 << 16
_SEEN_WITHIN = 5.0  # seconds that a network's file system may take to show a new file on another node


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor runs: its node, the node's address, the process, and the GPUs that it was given."""

    node: str
    address: str
    pid: int
    devices: tuple[str, ...]


def in_order(places: Sequence[Place]) -> list[int]:
    """Return the actors by rank: those of a node one after the other, the nodes as they come."""
    nodes = list(dict.fromkeys(place.node for place in places))
    return sorted(range(len(places)), key=lambda number: nodes.index(places[number].node))


def variables_of(places: Sequence[Place], port: int) -> list[dict[str, str]]:
    """Return torchrun's variables for each rank, given where each is.

    The processes of a node see all GPUs that these were given, in the order of their LOCAL_RANK.
    """
    found: list[dict[str, str]] = []
    before: Counter[str] = Counter()
    for rank, place in enumerate(places):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(before[place.node]),
            "WORLD_SIZE": str(len(places)),
            "MASTER_ADDR": places[0].address,
            "MASTER_PORT": str(port),
        }
        if devices := [device for each in places if each.node == place.node for device in each.devices]:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        found.append(variables)
        before[place.node] += 1
    return found


class RankHost:
    """Starts one process of a run, passes on signals and what it prints, and ends with it.

    The process is a child of the actor's, and Linux ends it when the actor ends, however that does.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said, self._read = tempfile.TemporaryFile(), 0  # noqa: SIM115 (it goes with the actor)

    def place(self) -> Place:
        """Return where this actor runs."""
        ray: Any = import_module("ray")
        context = ray.get_runtime_context()
        devices = tuple(map(str, context.get_accelerator_ids().get("GPU", [])))
        return Place(context.get_node_id(), ray.util.get_node_ip_address(), os.getpid(), devices)

    def free_port(self) -> int:
        """Return a port of this node that nobody listens at."""
        with socket.socket() as free:
            free.bind(("", 0))
            return int(free.getsockname()[1])

    def leave_token(self, run: Path) -> Path:
        """Write a file beside what there is of a run's directory, for the other nodes to see; return its path."""
        folder = next(each for each in (run, *run.parents) if each.is_dir())
        token = folder / f".envrl-{uuid4().hex}"
        token.write_text("")
        return token

    def sees(self, path: Path) -> bool:
        """Return whether a file or folder is there, or appears within some seconds."""
        end = time.monotonic() + _SEEN_WITHIN
        while not (found := path.exists()) and time.monotonic() < end:
            time.sleep(0.1)
        return found

    def remove_token(self, token: Path) -> None:
        """Remove what `leave_token` wrote."""
        token.unlink(missing_ok=True)

    def has_run(self, run: Path) -> bool:
        """Return whether the run's directory has been made."""
        return (run / "config.toml").is_file()

    def is_held(self, run: Path) -> bool:
        """Return whether a process that was not ended yet still writes the run."""
        with suppress(FileNotFoundError):
            try:
                with lock_run(run):
                    return False
            except UserError:
                return True
        return False

    def start(self, arguments: Sequence[str], folder: Path, variables: Mapping[str, str]) -> int:
        """Start `envrl ARGUMENTS` in a folder with these environment variables beside the node's; return its pid."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "envrl", *arguments],
            cwd=folder,
            env={**os.environ, "RAY_ADDRESS": _address(), **variables},
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            start_new_session=True,  # what a terminal sends is the launcher's to pass on
        )
        return self._process.pid

    def poll(self) -> tuple[str, int | None]:
        """Return the lines that the process has printed since the last call, and its exit status once it has ended."""
        assert self._process is not None
        status = self._process.poll()  # before what it said is read, so that nothing is left out
        said = os.pread(self._said.fileno(), _CHUNK, self._read)
        if len(said) == _CHUNK:
            status = None  # there is more to read
        whole = said if status is not None else said[: said.rfind(b"\n") + 1] or (said if len(said) == _CHUNK else b"")
        self._read += len(whole)
        return whole.decode("utf-8", "replace"), status

    def stop(self) -> None:
        """Tell the process to stop between two updates."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)  # Ray's processes, and so their children, are deaf to SIGINT

    def end(self) -> None:
        """Kill the process, and return when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _address() -> str:
    """Return the address of this actor's cluster, where its process finds it for its worlds."""
    ray: Any = import_module("ray")
    return str(ray.get_runtime_context().gcs_address)
