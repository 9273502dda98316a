"""What kind of token each one of a text is: a large weight may teach a model the words around what it has to know."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOKEN_KINDS = ("word", "name", "number")
"""A digit makes a number; a word before a number is a name ("desk 1"); all else is a word."""
_NAME = re.compile(r"[^\W\d_]+(?= ?\d)")
_NUMBER = re.compile(r"\d+")

Kinds = NDArray[np.int8]


def kinds_of(texts: Sequence[str]) -> Kinds:
    """Return the place in `TOKEN_KINDS` of each token, given their texts in order; a token has its last kind.

    >>> kinds_of(["You see a", " desk", " 1", "."]).tolist()
    [0, 1, 2, 0]
    """
    whole, ends = "".join(texts), np.cumsum([len(text) for text in texts], dtype=np.int64)
    kinds = np.zeros(len(whole) + 1, dtype=np.int8)
    for kind, pattern in ((1, _NAME), (2, _NUMBER)):
        for match in pattern.finditer(whole):
            kinds[match.start() : match.end()] = kind
    return np.array(
        [kinds[end - len(text) : end].max(initial=0) for text, end in zip(texts, ends, strict=True)], np.int8
    )
