"""Random draws that are a pure function of a key: the same on every machine and in every version of Python."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """A stream of draws named by `key`.

    It rests on `random.Random(seed).random()` alone, whose values Python promises to keep; `choice`, `shuffle` and the
    like have changed between versions.
    """

    def __init__(self, *key: str | int) -> None:
        digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
        self._uniform = random.Random(int.from_bytes(digest, "big")).random

    def below(self, n: int) -> int:
        """Return one of 0 … n − 1."""
        return int(self._uniform() * n)

    def between(self, low: int, high: int) -> int:
        """Return one of low … high, both included."""
        return low + int(self._uniform() * (high - low + 1))

    def chance(self, percent: float) -> bool:
        return self._uniform() * 100 < percent

    def one_of(self, items: Sequence[T]) -> T:
        return items[int(self._uniform() * len(items))]

    def weighted(self, weights: Sequence[int]) -> int:
        """Return the index of a weight, as often as its weight says."""
        left = self._uniform() * sum(weights)
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return max(index for index, weight in enumerate(weights) if weight)

    def name(self, weights: Mapping[str, int]) -> str:
        """Return a name, as often as its weight says."""
        return list(weights)[self.weighted(list(weights.values()))]
