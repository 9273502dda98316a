"""The code blocks of a page of the documentation, by its heading."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def runnable(page: str, heading: str) -> list[str]:
    """Return the blocks marked `run` in the section of a page whose heading contains these words."""
    sections = re.split(r"^## ", (DOCS / page).read_text(encoding="utf-8"), flags=re.M)
    (section,) = (text for text in sections if heading in text.partition("\n")[0].lower())
    found = re.findall(r"^<!-- run -->\n```python\n(.*?)^```$", section, re.M | re.S)
    assert found
    return found
