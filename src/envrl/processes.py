"""Ends of processes: one that was started for another ends with it, and the signals that ask one to stop."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


def end_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have Linux end this process when its parent ends, even where it is stopped; end it where that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, by)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def own_signals(handle: Callable[[int], None] | None = None) -> Iterator[None]:
    """Have SIGINT and SIGTERM call `handle` with their number while the block runs; put back what was there before.

    Without a `handle`, they stay as they are until the block changes them. Only the main thread can have handlers: in
    any other nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        if handle is not None:
            for each in before:
                signal.signal(each, lambda number, _: handle(number))
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
