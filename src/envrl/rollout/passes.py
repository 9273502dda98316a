"""Split ragged chunks of many slots into the cheapest forward passes, each over a range of the columns.

With chunks of 3, 3, 4 and 660 tokens, a single pass would be mostly padding. If it is cut after column 4, a second pass
holds the long chunk alone; but it must copy the keys and values of its slot, and has the fixed cost of a pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Costs:
    """The cost of passes, in units of the cost of one token. It decides the speed, never the result.

    A pass costs `begin` in addition to its tokens; a token costs `read` for each earlier position of its slot; a pass
    over some of the slots costs `copy` for each position of their keys and values.
    """

    begin: float
    read: float
    copy: float


COSTS = {"cpu": Costs(35.0, 0.016, 0.022), "cuda": Costs(3000.0, 0.001, 0.001)}
"""By device. CPU: measured on the preset `tiny` with one thread. CUDA: calculated, not measured, for Qwen2.5-1.5B on an
H200: 28 layers that take 0.8 ms each to begin, 8 μs for a token's products, 6 ns to read 28 KiB."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over columns `start:stop` of the chunks that are longer than `start`."""

    start: int
    stop: int
    whole: bool
    """True if the pass includes all slots, which saves the copy."""


def plan_passes(lengths: Sequence[int], slots: int, cached: int, costs: Costs) -> list[Pass]:
    """Return the cheapest passes for chunks of these lengths (≥ 1), by dynamic programming over the cuts.

    There are `slots` slots in all, of which the longest holds `cached` tokens before its chunk.
    """
    ends, counts = np.unique(np.asarray(lengths), return_counts=True)
    starts = np.concatenate([[0], ends[:-1]])
    holding = counts[::-1].cumsum()[::-1]  # number of chunks longer than each start
    width = ends[None, :] - starts[:, None]
    seen = cached + ends[None, :]
    whole = slots * (width + costs.read * seen)
    some = holding[:, None] * (width + (costs.read + costs.copy) * seen)
    cost = np.where(width > 0, costs.begin + np.minimum(whole, some), np.inf)
    best, origin = np.zeros(len(ends) + 1), np.zeros(len(ends), dtype=np.int64)
    for last in range(len(ends)):
        totals = best[: last + 1] + cost[: last + 1, last]
        origin[last] = totals.argmin()
        best[last + 1] = totals[origin[last]]
    passes: list[Pass] = []
    last = len(ends) - 1
    while last >= 0:
        first = int(origin[last])
        cheaper = bool(whole[first, last] <= some[first, last])
        passes.append(Pass(int(starts[first]), int(ends[last]), cheaper))
        last = first - 1
    return passes[::-1]
