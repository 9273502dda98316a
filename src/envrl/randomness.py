"""Random numbers as a function of their purpose: (seed, update, task, member, turn, token), never of a slot or worker.

NumPy's generators give numbers in sequence; here each is computed by itself, so no batch or worker can shift it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

_STEP = np.uint64(0x9E3779B97F4A7C15)


def key_of(*parts: int | str) -> int:
    """Return a 64-bit hash of integers and strings, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def sample_share(items: Iterable[T], share: float, key: int) -> list[T]:
    """Return the items, in order, each kept with probability `share` independently of the others."""
    items = list(items)
    if share >= 1.0:
        return items
    keep = np.random.Generator(np.random.PCG64(key)).random(len(items)) < share
    return [item for item, kept in zip(items, keep, strict=True) if kept]


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64's output for each 64-bit word (Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = values + _STEP
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniforms(
    keys: NDArray[np.uint64], turns: int | NDArray[np.uint64], token: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return one number in [0, 1) per key, for its turn and token."""
    words = mix(mix(keys ^ mix(np.full_like(keys, turns))) ^ token.astype(np.uint64))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
