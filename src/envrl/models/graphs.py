"""Decode passes as a CUDA graph: one launch starts all kernels, which Python would launch one by one.

A graph repeats the same kernels on the same memory. So a pass is recorded in fixed shapes: all slots, each with a token
or none, over the full capacity of the cache. If the cache's tensors change (it grows, slots are dropped), the graph is
void, and the next one is recorded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from envrl.models.devices import sent
from envrl.models.forward import chunk_states
from envrl.models.out_of_memory import release_memory
from envrl.models.rounding import most_roundings, rounded_anew, roundings_apart
from envrl.models.slots import SlotCache

Pass = Callable[[], Tensor]
"""Runs a pass on prepared inputs and returns its hidden states."""

SETTLED = 8
"""Ordinary passes on one arrangement of the cache before a graph is recorded. Recording is assumed to take as long as
these, so whenever the arrangement changes, it has at most doubled the time of the passes."""
IN_VAIN = 1 << 30
"""Bytes that a layer may read for slots without a token, which a graph runs too: a device reads as much while Python
launches an ordinary layer's kernels (0.8 ms, as `envrl.costs.speed` assumes)."""


@dataclass(slots=True)
class Recorded:
    """Numbers of recorded graphs, of passes that replayed one, and of passes that ran without one."""

    graphs: int = 0
    passes: int = 0
    ordinary: int = 0


class PassGraph:
    """Runs passes of at most one token per slot, from a CUDA graph once that pays.

    A graph's first pass is compared with an ordinary one. If recording fails (out of memory or anything else), or the
    two disagree, it warns, and all later passes are ordinary ones.
    """

    def __init__(
        self, model: PreTrainedModel, cache: SlotCache, record: Callable[[Pass], Pass], count: Recorded
    ) -> None:
        self._model, self._cache, self._record, self._count = model, cache, record, count
        self._replay: Pass | None = None
        self._inputs = cache.lengths.new_zeros(2, 0)
        self._arrangement, self._met = -1, 0
        self._given_up = False

    def run(
        self, slots: Sequence[int], ids: NDArray[np.int64], counts: Sequence[int], room: int, ordinary: Pass
    ) -> Tensor:
        """Feed one id to each of these slots with count 1, none to those with count 0; return states (slots, 1, width).

        The states are valid until the next pass. `room` is the number of positions that the longest of all slots will
        need; `ordinary` runs the same pass without a graph.
        """
        everyone = len(self._cache.lengths)
        if self._given_up or (everyone - sum(counts)) * self._cache.slot_bytes > IN_VAIN:
            self._count.ordinary += 1
            return ordinary()
        self._cache.reserve(room)
        if self._arrangement != self._cache.arrangement:
            self._arrangement, self._met, self._replay = self._cache.arrangement, 0, None
        if self._replay is None and self._met < SETTLED:
            self._met += 1
            self._count.ordinary += 1
            return ordinary()
        inputs = np.zeros((2, everyone), dtype=np.int64)
        inputs[:, list(slots)] = ids, counts
        if self._replay is None:
            return self._first(inputs, slots, ordinary)
        self._count.passes += 1
        return self._rows(self._again(self._replay, inputs), slots)

    def _again(self, replay: Pass, inputs: NDArray[np.int64]) -> Tensor:
        self._inputs.copy_(sent(inputs, self._inputs.device))
        return replay()

    @staticmethod
    def _rows(states: Tensor, slots: Sequence[int]) -> Tensor:
        return states if len(slots) == len(states) else states[sent(slots, states.device)]

    def _first(self, inputs: NDArray[np.int64], slots: Sequence[int], ordinary: Pass) -> Tensor:
        """Record a graph and run this pass with it; then compare with the ordinary pass, and return its states.

        The tolerance is measured by an ordinary pass with other roundings.
        """
        moment, fault = self._cache.moment(), ""
        found = lengths = moment[0]
        self._inputs = self._cache.lengths.new_zeros(inputs.shape)  # no tokens, so that recording changes nothing
        try:
            self._replay = self._record(self._step())
            found = self._rows(self._again(self._replay, inputs), slots).clone()
            lengths = self._cache.lengths.clone()
        except (RuntimeError, MemoryError) as error:
            fault = f"it cannot be recorded ({' '.join(str(error).split())[:200]})"
        self._cache.go_back(moment)
        if fault:
            self._give_up(fault)
            return ordinary()
        with rounded_anew(self._model):
            anew = ordinary()
        self._cache.go_back(moment)
        states = ordinary()
        self._count.graphs += 1
        fed = self._rows(self._inputs[1], slots) > 0
        apart = roundings_apart([found[fed].flatten(0, 1)], [states[fed].flatten(0, 1)], [anew[fed].flatten(0, 1)])
        if not (apart <= most_roundings(self._model) and torch.equal(lengths, self._cache.lengths)):
            self._give_up(f"its states or lengths differ from an ordinary one's, by {apart:.1e} times their rounding")
        return states

    def _step(self) -> Pass:
        """Return a pass of fixed shapes, which never waits for a number from the device."""
        model, cache, (ids, counts), room = self._model, self._cache, self._inputs, self._cache.capacity
        return lambda: chunk_states(model, cache, ids[:, None], counts, None, room)

    def _give_up(self, fault: str) -> None:
        self._replay, self._given_up = None, True
        release_memory()
        warnings.warn(f"sampling goes on without a CUDA graph of a pass, slower, since {fault}", stacklevel=2)


def recorder(device: torch.device) -> Callable[[Pass], Pass] | None:
    """Return the function that records passes on a CUDA device, None for other devices."""
    return partial(_record, device) if device.type == "cuda" else None


def _record(device: torch.device, run: Pass) -> Pass:
    """Record a pass as a CUDA graph; return a function that replays it.

    Two ordinary passes run before on the same stream: the first does one-time work (workspaces, kernel selection), the
    second makes it an error to wait for the device, which a graph cannot contain.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        outer, side = torch.cuda.current_stream(), _side_stream(device)
        try:
            side.wait_stream(outer)
            with torch.cuda.stream(side):
                run()
                with _no_waiting():
                    run()
            outer.wait_stream(side)
            # Other threads may use the device meanwhile. The graph has its own pool: an emptied one cannot be reused.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                states = run()
        finally:
            torch.cuda.set_stream(outer)  # if a recording fails, torch leaves its stream in place

    def replay() -> Tensor:
        graph.replay()
        return states

    return replay


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream to record on, since libraries keep a workspace for every stream they have seen."""
    return torch.cuda.Stream(device)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Make it an error to wait for the device."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
