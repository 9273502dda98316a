"""A Ray cluster that is reached, or refused within seconds."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import IO, Any

from envrl.errors import UserError
from envrl.processes import own_signals

_ANSWER = 5.0  # seconds that a cluster has for an answer
_STORE = 80 << 20  # bytes of the object store of a cluster of our own, where next to nothing is kept in it
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2, which Ray speaks, says first, with a frame of no settings (RFC 9113, 3.4)."""
_FRAME, _SETTINGS = 9, b"\4"
"""The length of a frame's head, and the kind, in its byte 3, of the frame that the server says first."""


def connected(address: str, asked: str = "--ray", *, holds_weights: bool = False) -> Any:
    """Return the module `ray`, connected to a cluster, or for "local" to one of this machine that ends with us.

    `holds_weights`: the latter has an object store of Ray's own size; else it has a small one. Raises `UserError` where
    no cluster answers, or this machine is no node of it; `asked` is how it was asked for.
    """
    _check_answers(address, asked)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = import_module("ray")
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    if own and not holds_weights:
        own["object_store_memory"] = _STORE
    with tempfile.TemporaryFile() as log:
        try:
            # where it fails, Ray prints a line a second; and it has SIGTERM end the program at once
            with _errors_to(log), own_signals():
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
                f"{asked} {address}: no Ray cluster answers of which this machine is a node ({said.rstrip('.')}); "
                "'ray start' makes it one"
            ) from error
    return ray


def joined(asked: str) -> Any:
    """Return the module `ray`, connected to the cluster of `$RAY_ADDRESS`, or that this machine belongs to.

    Raises `UserError` where there is none; `asked` is the setting that needs it.
    """
    ray: Any = import_module("ray")
    if ray.is_initialized():
        return ray
    return connected(os.environ.get("RAY_ADDRESS", "auto"), f"{asked}, with RAY_ADDRESS")


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


def _check_answers(address: str, asked: str) -> None:
    """Raise `UserError` within seconds where nothing answers at an address; Ray itself would try for a minute."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UserError(f"{asked} takes the HOST:PORT that 'ray start' names, auto, or local, not '{address}'")
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
