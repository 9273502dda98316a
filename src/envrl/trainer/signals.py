"""Ctrl-C and SIGTERM: the first one stops a run at the next consistent state, a second one at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from envrl.errors import Interrupted
from envrl.processes import own_signals


class StopRequest:
    """How often the user asked to stop, after which `poll` raises `Interrupted`."""

    count = 0

    def poll(self) -> None:
        """Raise `Interrupted` if a stop was requested; called between turns and micro-batches, not inside a step."""
        if self.count:
            raise Interrupted("interrupted")


@contextmanager
def stop_on_signals(*, only_count: bool = False) -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM while the block runs; outside the main thread catch nothing.

    The second one raises `KeyboardInterrupt`, unless they are only counted.
    """
    request = StopRequest()

    def handle(_: int) -> None:
        request.count += 1
        if request.count > 1 and not only_count:
            raise KeyboardInterrupt

    with own_signals(handle):
        yield request
