"""How alike two texts are, without a model: the cosine of their counts of character trigrams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def trigrams(text: str) -> Counter[str]:
    """Return how often each three characters in a row occur in a text, in lower case, with single blanks.

    >>> sorted(trigrams("Ab  c").items())
    [(' ab', 1), (' c ', 1), ('ab ', 1), ('b c', 1)]
    """
    plain = f" {' '.join(text.lower().split())} "
    return Counter(plain[place : place + 3] for place in range(len(plain) - 2))


class Texts:
    """Texts to compare others with.

    The cosine of two texts with the trigram counts a and b is a · b / √(a · a · b · b). It needs no model and no
    language; its value for two texts does not depend on what else is kept; and since all sums are of whole numbers, it
    is the same bit for bit in whatever order they are added up.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counted = [trigrams(text) for text in texts]
        self._places = {gram: place for place, gram in enumerate(dict.fromkeys(g for each in counted for g in each))}
        self._rows = np.repeat(np.arange(len(counted)), [len(each) for each in counted])
        self._columns = np.array([self._places[gram] for each in counted for gram in each], dtype=np.int64)
        self._counts = np.array([number for each in counted for number in each.values()], dtype=np.float64)
        self._squares_N = np.array([_square(each) for each in counted], dtype=np.float64)

    def similarities(self, text: str) -> NDArray[np.float64]:
        """Return the similarity, 0 to 1, of a text to each.

        >>> Texts(["ab", "abc", "xyz"]).similarities("AB").round(4).tolist()
        [1.0, 0.4082, 0.0]
        """
        wanted, asked = trigrams(text), np.zeros(len(self._places))
        for gram in wanted.keys() & self._places.keys():
            asked[self._places[gram]] = wanted[gram]
        shared_N = np.bincount(self._rows, self._counts * asked[self._columns], len(self._squares_N))
        scale_N = np.sqrt(self._squares_N * _square(wanted))
        return np.divide(shared_N, scale_N, out=np.zeros(len(shared_N)), where=scale_N > 0)


def _square(counted: Counter[str]) -> int:
    return sum(number * number for number in counted.values())
