"""Texts as an encoding takes them."""

from __future__ import annotations

import re

_HALVES = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """Return a text in which every half of a surrogate pair, which no encoding has, is U+FFFD."""
    return text if text.isascii() else _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)
