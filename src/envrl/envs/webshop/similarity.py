"""Whether two texts are alike: thefuzz 0.19's `token_set_ratio(a, b) > 85`, on difflib as the original ran it."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from functools import lru_cache

THRESHOLD = 85
_NOT_WORD = re.compile(r"\W")
_LATIN_1 = dict.fromkeys(range(128, 256))


def similar(first: str, second: str) -> bool:
    """Return whether the likeness of two texts' word sets, 0 to 100, is above 85.

    With I the common words, sorted, and A, B = I and the rest of either, sorted: the best of r(I, A), r(I, B) and
    r(A, B), where r is difflib's ratio in whole per cent. U+0080 to U+00FF are dropped before.
    """
    return _alike(_tokens(first), _tokens(second))


@lru_cache(maxsize=50_000)
def _tokens(text: str) -> frozenset[str]:
    return frozenset(_NOT_WORD.sub(" ", text.translate(_LATIN_1)).lower().split())


def _pairs(first: frozenset[str], second: frozenset[str]) -> list[tuple[str, str]]:
    if not first or not second:
        return []
    shared = " ".join(sorted(first & second))
    one = f"{shared} {' '.join(sorted(first - second))}".strip()
    other = f"{shared} {' '.join(sorted(second - first))}".strip()
    return [(shared, one), (shared, other), (one, other)]


def _ratio(one: str, other: str) -> int:
    if not one or not other:
        return 0
    return 100 if one == other else round(100 * SequenceMatcher(None, one, other).ratio())


@lru_cache(maxsize=200_000)
def _alike(first: frozenset[str], second: frozenset[str]) -> bool:
    if first and second and (first <= second or second <= first):
        return True  # the common words are all of one of them: r = 100
    for one, other in _pairs(first, second):
        longer = len(one) + len(other)
        # ratio ≤ 2 · shorter / (both lengths), difflib's own quick bound: most pairs end here
        if (
            one
            and other
            and round(200 * min(len(one), len(other)) / longer) > THRESHOLD
            and _ratio(one, other) > THRESHOLD
        ):
            return True
    return False
