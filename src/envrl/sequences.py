"""Functions of token id sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envrl.types import IntArray


def common_prefix(one: Sequence[int] | IntArray, other: Sequence[int] | IntArray) -> int:
    """Return the length of the common prefix of two sequences."""
    length = min(len(one), len(other))
    differs = np.asarray(one[:length]) != np.asarray(other[:length])
    return int(differs.argmax()) if differs.any() else length


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return `count` indices into a sequence of this length: the middles of `count` equal parts of it."""
    return [(2 * number + 1) * length // (2 * count) for number in range(count)]


def order(ids: Sequence[int] | IntArray) -> bytes:
    """Return a sort key of token ids (≥ 0) that puts sequences with a common prefix next to each other."""
    return np.asarray(ids).astype(">u4").tobytes()
