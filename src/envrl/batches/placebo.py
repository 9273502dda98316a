"""The placebo of an auxiliary loss: the same rows and the same targets, but each row gets another row's target."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envrl.errors import UserError

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Placebo:
    """An exchange of targets: row i gets the target of row `source_N[i]`, a permutation.

    `coincidences` counts the new targets that equal the row's own, `other_length` those of another length.
    """

    source_N: Indices
    coincidences: int
    other_length: int


def derange(targets: Sequence[Hashable], lengths: Sequence[int], seed: int | Sequence[int]) -> Placebo:
    """Exchange targets at random so that no row keeps its own text, among rows of equal length if possible.

    `targets` are texts (or token ids as tuples), `lengths` their token counts. Equal arguments give equal results.

    Each bin of equal length is shuffled. Then a row whose target still equals its own trades with a random row of its
    bin such that neither gets its own target. A row without such a partner (in a bin of one, or with a text that fills
    more than half of its bin) trades with a row of the nearest length. Every trade removes a coincidence and adds none,
    and a partner exists as long as a text that occurs m times among n targets has more than max(0, 2m − n)
    coincidences. So that many remain, the fewest of any permutation: none unless one text fills more than half of *all*
    targets. Raises `UserError` if the two lists differ in length. Source: the shuffled-target control of arXiv
    2607.21273.
    """
    if len(targets) != len(lengths):
        raise UserError(f"a placebo needs one length a target: {len(lengths)} lengths for {len(targets)} targets")
    generator = np.random.default_rng(seed)
    numbers: dict[Hashable, int] = {}
    texts_N = np.array([numbers.setdefault(target, len(numbers)) for target in targets], dtype=np.int64)
    lengths_N = np.asarray(lengths, dtype=np.int64)
    source_N = np.arange(len(targets))
    for length in np.unique(lengths_N):
        rows = np.flatnonzero(lengths_N == length)
        source_N[rows] = generator.permutation(rows)
        _trade(rows, source_N, texts_N, lengths_N, generator)
    _trade(np.arange(len(targets)), source_N, texts_N, lengths_N, generator)
    return Placebo(
        source_N=source_N,
        coincidences=int((texts_N[source_N] == texts_N).sum()),
        other_length=int((lengths_N[source_N] != lengths_N).sum()),
    )


def _trade(
    rows: Indices, source_N: Indices, texts_N: Indices, lengths_N: Indices, generator: np.random.Generator
) -> None:
    """Let each row that has its own text trade sources with a partner of the nearest length among `rows`, in place."""
    for row in rows[texts_N[source_N[rows]] == texts_N[rows]]:
        text, length = texts_N[row], lengths_N[row]
        if texts_N[source_N[row]] != text:  # an earlier trade resolved it
            continue
        partners = rows[(texts_N[rows] != text) & (texts_N[source_N[rows]] != text)]
        if not partners.size:
            continue
        gaps = np.abs(lengths_N[partners] - length) + np.abs(lengths_N[source_N[partners]] - length)
        partner = generator.choice(partners[gaps == gaps.min()])
        source_N[[row, partner]] = source_N[[partner, row]]
