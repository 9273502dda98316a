"""Ends of processes: one that was started for another one ends with it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


def end_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have Linux end this process when its parent ends, even where it is stopped; end it where that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, by)
    if os.getppid() != parent:
        os._exit(1)
