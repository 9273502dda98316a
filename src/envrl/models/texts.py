"""Texts that can be encoded."""

from __future__ import annotations

import re

_HALVES = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """Return the text with every lone surrogate, which cannot be encoded, replaced by U+FFFD."""
    return text if text.isascii() else _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)
