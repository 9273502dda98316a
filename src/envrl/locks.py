"""A file or folder held by one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from envrl.errors import UserError


@contextmanager
def held(path: Path, refusal: str) -> Iterator[None]:
    """Hold a file or folder for this process, until it ends, however it ends.

    Raises `UserError` with the sentence `refusal` where another process holds it.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(refusal) from None
        yield
    finally:
        os.close(file)


def is_held(path: Path) -> bool:
    """Return whether another process holds a file or folder now."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
