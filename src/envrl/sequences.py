"""Sequences of token ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envrl.types import IntArray


def common_prefix(one: Sequence[int] | IntArray, other: Sequence[int] | IntArray) -> int:
    """Return how many tokens two sequences begin with alike."""
    length = min(len(one), len(other))
    differs = np.asarray(one[:length]) != np.asarray(other[:length])
    return int(differs.argmax()) if differs.any() else length


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return `count` places in a sequence of so many things, the middles of as many equal parts of it."""
    return [(2 * number + 1) * length // (2 * count) for number in range(count)]


def order(ids: Sequence[int] | IntArray) -> bytes:
    """Return what token ids (≥ 0) are sorted by, so that those which begin alike stand together."""
    return np.asarray(ids).astype(">u4").tobytes()
