"""Rows to micro-batches: by length, under a token budget."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.types import Row


def pack(rows: Sequence[Row], budget: int, *, padded: bool = True) -> list[list[Row]]:
    """Return micro-batches of rows of like length whose tokens stay within `budget`.

    `padded`: every row counts as long as its micro-batch's longest. A row is never split: one longer than the budget is
    a micro-batch of its own. The order is a function of the rows.
    """
    batches: list[list[Row]] = []
    filled = 0
    for row in sorted(rows, key=lambda r: len(r.token_ids), reverse=True):
        size = len(batches[-1][0].token_ids if batches and padded else row.token_ids)
        if not batches or filled + size > budget:
            batches.append([])
            size, filled = len(row.token_ids), 0
        batches[-1].append(row)
        filled += size
    return batches


def denominators(rows: Sequence[Row]) -> dict[str, float]:
    """Return N_c of every component: the sum of its rows' shares."""
    totals: dict[str, float] = {}
    for row in rows:
        for term in row.terms:
            totals[term.component] = totals.get(term.component, 0.0) + term.share
    return totals
