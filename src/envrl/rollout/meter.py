"""What sampling costs: passes, tokens, and seconds by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from envrl.models.graphs import Recorded

Part = Literal["prefill", "decode", "replay", "record", "draw"]


@dataclass(slots=True)
class Meter:
    """Counts of a sampler's work; `prefill` are passes with chunks, the others have a token a slot at most.

    Of those, `replay` are passes from a CUDA graph, `record` those for which one was recorded, `decode` all others.
    `wait` is called before a clock is read: a GPU's work goes on while the program does.
    """

    wait: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter
    passes: int = 0
    fed: int = 0
    """Tokens that went through the network."""
    cells: int = 0
    """The same with padding."""
    recorded: Recorded = field(default_factory=Recorded)
    """Of the passes those that came from CUDA graphs."""
    seconds: dict[Part, float] = field(default_factory=lambda: dict.fromkeys(get_args(Part), 0.0))

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count the seconds of what is done in this context."""
        began = self._time()
        yield
        self.seconds[name] += self._time() - began

    @contextmanager
    def a_pass(self, counts: list[int]) -> Iterator[None]:
        """Count a pass with chunks of these lengths."""
        self.passes += 1
        self.fed += sum(counts)
        self.cells += len(counts) * max(counts)
        before, began = replace(self.recorded), self._time()
        yield
        name: Part = "prefill" if max(counts) > 1 else "decode"
        if self.recorded.passes > before.passes:
            name = "replay"
        elif self.recorded.graphs > before.graphs:
            name = "record"
        self.seconds[name] += self._time() - began

    def _time(self) -> float:
        self.wait()
        return self.clock()
