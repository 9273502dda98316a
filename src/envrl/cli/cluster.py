"""A Ray cluster as `envrl train … --ray ADDRESS` finds it: reached or refused within seconds, large enough or not."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import IO, Any

from envrl.config.schema import Config
from envrl.errors import UserError
from envrl.registry import find

_ANSWER = 5.0  # seconds that a cluster has for an answer
_STORE = 80 << 20  # bytes of the object store of a cluster of our own: next to nothing is kept in it
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2, which Ray speaks, says first, with a frame of no settings (RFC 9113, 3.4)."""
_FRAME, _SETTINGS = 9, b"\4"
"""The length of a frame's head, and the kind, in its byte 3, of the frame that the server says first."""


def check_ray(config: Config) -> None:
    """Raise `UserError` where no run can be given to Ray from here."""
    if "WORLD_SIZE" in os.environ:
        raise UserError("--ray starts the processes itself: leave it out under torchrun")
    if not find("engine", config.train.engine).traits.get("shards"):
        raise UserError(
            f"--ray is for an engine of several processes, and train.engine = '{config.train.engine}' is one of a "
            "single process: set train.engine = 'sharded', or leave out --ray"
        )
    if find_spec("ray") is None:
        raise UserError("--ray needs Ray, which is not installed: pip install 'envrl[ray]'")


def connected(address: str) -> Any:
    """Return the module `ray`, connected to a cluster, or for "local" to one of this machine that ends with us.

    Raises `UserError` where no cluster answers, or this machine is no node of it.
    """
    _check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = import_module("ray")
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _STORE} if address == "local" else {}
    with tempfile.TemporaryFile() as log:
        try:
            with _errors_to(log):  # where it fails, Ray prints a line a second
                ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
        except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            log.seek(0)
            if b"InvalidAuthToken" in log.read() or isinstance(error, ray.exceptions.AuthenticationError):
                raise UserError(
                    f"the Ray cluster at {address} asks for a token: set RAY_AUTH_MODE=token, and have the cluster's "
                    "in ~/.ray/auth_token"
                ) from error
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"--ray {address}: no Ray cluster answers of which this machine is a node ({said.rstrip('.')}); "
                "'ray start' makes it one"
            ) from error
    return ray


@contextmanager
def _errors_to(file: IO[bytes]) -> Iterator[None]:
    """Have what this process prints on standard error, its C++ part too, go to a file while the block runs."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _check_answers(address: str) -> None:
    """Raise `UserError` within seconds where nothing answers at an address; Ray itself would try for a minute."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UserError(f"--ray takes the HOST:PORT that 'ray start' names, auto, or local, not '{address}'")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER) as connection:
            connection.settimeout(_ANSWER)
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                connection.sendall(_PREFACE)
                if connection.recv(_FRAME)[3:4] != _SETTINGS:
                    raise ConnectionError("something else listens there")
    except OSError as error:
        raise UserError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): 'ray start' says the address of one"
        ) from error


def kind_of(device: str) -> str:
    """Return what Ray calls the device of a process: "GPU" or "CPU"."""
    return "GPU" if device.startswith("cuda") else "CPU"


def room(ray: Any, device: str) -> int:
    """Return how many processes the whole cluster has room for, at least 1."""
    return max(1, int(ray.cluster_resources().get(kind_of(device), 0)))


def nodes_alive(ray: Any) -> int:
    """Return how many nodes the cluster has."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def size_of(resources: Mapping[str, float], nodes: int) -> str:
    """Return a cluster's size in words: "2 nodes with 4 CPUs and 0 GPUs"."""
    counts = [some(int(resources.get(kind, 0)), kind) for kind in ("CPU", "GPU")]
    return f"{some(nodes, 'node')} with {' and '.join(counts)}"


def check_size(resources: Mapping[str, float], nodes: int, count: int, device: str) -> None:
    """Raise `UserError` where a cluster is too small for so many processes."""
    kind = kind_of(device)
    if resources.get(kind, 0) < count:
        raise UserError(
            f"{some(count, 'process', 'processes')} with train.device = '{device}' need a {kind} each, and the Ray "
            f"cluster has {size_of(resources, nodes)}: add nodes, or lower --processes"
        )


def some(count: int, what: str, many: str = "") -> str:
    """Return a number of things in words."""
    return f"{count} {what if count == 1 else many or f'{what}s'}"
