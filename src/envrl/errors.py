"""The two ways a run ends badly: the user's input was wrong (exit status 2), or the run failed (exit status 1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's input was wrong: one sentence that says what, where, and what to do; exit status 2."""


class RunError(Exception):
    """The run could not go on (a full disk, a diverged loss); one sentence; exit status 1."""


class MemoryShort(RunError):
    """Memory ran out in one of several processes, and all of them can go on from the last checkpoint with less."""


class OthersEnded(RunError):
    """Another process of the same run has ended, and said why; exit status 1."""


class Interrupted(Exception):
    """A Ctrl-C or SIGTERM, raised where the run's state is whole; exit status 130 once the checkpoint is saved."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known name, else `"; choose from a, b, c"`."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; choose from {', '.join(names)}" if names else ""
