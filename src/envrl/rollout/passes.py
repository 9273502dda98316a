"""How ragged chunks of many slots go through the network: in passes over some of the columns, at the least cost.

With chunks of 3, 3, 4 and 660 tokens a single pass would be padding for the most part. Cut behind column 4, a second
holds the long chunk alone, but has to copy the keys and values of its slot, and costs what any pass costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PASS = 35.0
"""What a pass costs beside its tokens. This and the next two are in units of one token's cost, measured on the preset
`tiny` with one thread; they decide how fast chunks are run, never what comes out."""
READ = 0.016
"""What it costs a token of a slot to attend to one earlier position."""
COPY = 0.022
"""What it costs to copy one position of a slot's keys and values, as a pass over some of the slots must."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Columns `start:stop` of the chunks that reach beyond `start`, alone or beside all other slots."""

    start: int
    stop: int
    whole: bool
    """Whether the pass holds all slots, which saves the copy."""


def plan_passes(lengths: Sequence[int], slots: int, cached: int) -> list[Pass]:
    """Return the cheapest passes for chunks of these lengths (≥ 1), by dynamic programming over where to cut.

    There are `slots` slots in all, the longest of them with `cached` tokens before its chunk.
    """
    ends, counts = np.unique(np.asarray(lengths), return_counts=True)
    starts = np.concatenate([[0], ends[:-1]])
    holding = counts[::-1].cumsum()[::-1]  # the chunks longer than each start
    width = ends[None, :] - starts[:, None]
    seen = cached + ends[None, :]
    whole = slots * (width + READ * seen)
    some = holding[:, None] * (width + (READ + COPY) * seen)
    cost = np.where(width > 0, PASS + np.minimum(whole, some), np.inf)
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
