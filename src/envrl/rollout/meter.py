"""The cost of sampling: forward passes, tokens, and seconds by part."""

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
    """Counts of a sampler's work. `wait` is called before the clock is read, since a GPU works asynchronously.

    `prefill` passes feed some slot more than one token. The others feed each slot one token at most: `replay` passes
    replay a CUDA graph, `record` passes record one, `decode` passes do neither.
    """

    wait: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.perf_counter
    passes: int = 0
    fed: int = 0
    """Tokens fed to the network, without padding."""
    cells: int = 0
    """Tokens fed to the network, padding included."""
    recorded: Recorded = field(default_factory=Recorded)
    """Counts of the CUDA graphs and the passes that came from them."""
    seconds: dict[Part, float] = field(default_factory=lambda: dict.fromkeys(get_args(Part), 0.0))

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count the seconds of the block as this part's."""
        began = self._time()
        yield
        self.seconds[name] += self._time() - began

    @contextmanager
    def a_pass(self, counts: list[int]) -> Iterator[None]:
        """Count the block as one forward pass over chunks of these lengths."""
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
