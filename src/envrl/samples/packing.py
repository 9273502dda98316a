"""Rows to micro-batches: by length, under a token budget."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.types import Row


def pack(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """Return micro-batches of rows of like length; rows × longest row stays within `budget` tokens.

    A row is never split: one longer than the budget is a micro-batch of its own. The order is a function of the rows.
    """
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda r: len(r.token_ids), reverse=True):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].token_ids) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def denominators(rows: Sequence[Row]) -> dict[str, float]:
    """Return N_c of every component: the sum of its rows' shares."""
    totals: dict[str, float] = {}
    for row in rows:
        for term in row.terms:
            totals[term.component] = totals.get(term.component, 0.0) + term.share
    return totals
