"""Pack rows into micro-batches under a token budget, by length or by common prefix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from envrl.sequences import common_prefix, order
from envrl.types import IntArray, Row

LARGEST_WHOLE = 8
"""The most tokens of a micro-batch, in budgets, if shared prefixes are counted for every row: on a GPU attention runs
whole rows, and has memory for that (`envrl.models.attention`)."""


def pack(rows: Sequence[Row], budget: int, *, padded: bool = True) -> list[list[Row]]:
    """Return micro-batches of rows within a token `budget`; see `pack_ids`."""
    return [[rows[i] for i in batch] for batch in pack_ids([row.token_ids for row in rows], budget, padded=padded)]


def pack_ids(sequences: Sequence[IntArray], budget: int, *, padded: bool = True) -> list[list[int]]:
    """Return micro-batches of token id sequences, as lists of indices, within a token `budget`.

    `padded`: group by length; each sequence counts as many tokens as the longest of its micro-batch. Otherwise group by
    prefix: the prefix that a sequence shares with the one before it is not counted again, as long as the whole
    sequences stay within `LARGEST_WHOLE` budgets. A sequence is never split; one longer than the budget is a
    micro-batch of its own. The order is a function of the sequences.
    """
    batches: list[list[int]] = []
    filled = whole = 0
    for index in sorted(range(len(sequences)), key=lambda i: -len(sequences[i]) if padded else order(sequences[i])):
        length = len(sequences[index])
        if not batches:
            size = length
        elif padded:
            size = len(sequences[batches[-1][0]])
        else:
            size = length - common_prefix(sequences[batches[-1][-1]], sequences[index])
        if not batches or filled + size > budget or whole + length > LARGEST_WHOLE * budget:
            batches.append([])
            size, filled, whole = length, 0, 0
        batches[-1].append(index)
        filled, whole = filled + size, whole + length
    return batches


def shared_lengths(rows: Sequence[Row]) -> list[int]:
    """Return the length of the prefix that each row of a micro-batch shares with the row before it; 0 for the first."""
    return [0] * bool(rows) + [common_prefix(one.token_ids, other.token_ids) for one, other in pairwise(rows)]


def tokens_run(rows: Sequence[Row], *, padded: bool) -> int:
    """Return the tokens that the network runs for a micro-batch: padding included, or shared prefixes only once."""
    lengths = [len(row.token_ids) for row in rows]
    return len(rows) * max(lengths, default=0) if padded else sum(lengths) - sum(shared_lengths(rows))


def denominators(rows: Sequence[Row]) -> dict[str, float]:
    """Return the denominator N_c of every component: the sum of its rows' token counts."""
    totals: dict[str, float] = {}
    for row in rows:
        for term in row.terms:
            totals[term.component] = totals.get(term.component, 0.0) + term.token_count
    return totals
