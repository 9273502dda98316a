"""How ragged chunks of many slots go through the network: in passes over some of the columns, at the least cost.

With chunks of 3, 3, 4 and 660 tokens a single pass would be padding for the most part. Cut behind column 4, a second
holds the long chunk alone, but has to copy the keys and values of its slot, and costs what any pass costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Costs:
    """What passes cost, in units of one token's; this decides how fast chunks are run, never what comes out.

    A pass costs `begin` beside its tokens, a token `read` for each earlier position of its slot, and a pass over some
    of the slots `copy` for each position of their keys and values.
    """

    begin: float
    read: float
    copy: float


COSTS = {"cpu": Costs(35.0, 0.016, 0.022), "cuda": Costs(3000.0, 0.001, 0.001)}
"""By device: measured on the preset `tiny` with one thread; and for CUDA reckoned, not measured, for Qwen2.5-1.5B on an
H200: 28 layers that take 0.8 ms each to begin, 8 μs for a token's products, 6 ns to read 28 KiB."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Columns `start:stop` of the chunks that reach beyond `start`, alone or beside all other slots."""

    start: int
    stop: int
    whole: bool
    """Whether the pass holds all slots, which saves the copy."""


def plan_passes(lengths: Sequence[int], slots: int, cached: int, costs: Costs) -> list[Pass]:
    """Return the cheapest passes for chunks of these lengths (≥ 1), by dynamic programming over where to cut.

    There are `slots` slots in all, the longest of them with `cached` tokens before its chunk.
    """
    ends, counts = np.unique(np.asarray(lengths), return_counts=True)
    starts = np.concatenate([[0], ends[:-1]])
    holding = counts[::-1].cumsum()[::-1]  # the chunks longer than each start
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
