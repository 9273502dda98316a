"""What sampling costs: passes, tokens, and seconds by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from envrl.models.graphs import Recorded

Part = Literal["prefill", "decode", "draw"]


@dataclass(slots=True)
class Meter:
    """Counts of a sampler's work; `prefill` are passes with chunks, `decode` those with a token a slot at most.

    `wait` is called before a clock is read: a GPU's work goes on while the program does.
    """

    wait: Callable[[], None] = lambda: None
    passes: int = 0
    fed: int = 0
    """Tokens that went through the network."""
    cells: int = 0
    """The same with padding."""
    recorded: Recorded = field(default_factory=Recorded)
    """Of the passes those that came from CUDA graphs."""
    seconds: dict[Part, float] = field(default_factory=lambda: {"prefill": 0.0, "decode": 0.0, "draw": 0.0})

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count the seconds of what is done in this context."""
        self.wait()
        began = time.perf_counter()
        yield
        self.wait()
        self.seconds[name] += time.perf_counter() - began

    @contextmanager
    def a_pass(self, counts: list[int]) -> Iterator[None]:
        """Count a pass with chunks of these lengths."""
        self.passes += 1
        self.fed += sum(counts)
        self.cells += len(counts) * max(counts)
        with self.part("prefill" if max(counts) > 1 else "decode"):
            yield
