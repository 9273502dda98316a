"""The words of a title by which two products count as the same kind, without a tagger.

The original takes what spaCy tags as nouns. In titles, which are capitalised, that is nearly every word: what is taken
here instead gives the same type score for 95 % of pairs (tests/test_webshop.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from envrl.envs.webshop.analysis import STOP_WORDS
from envrl.errors import UserError

SPACY_MODEL = "en_core_web_sm"

_WORD = re.compile(r"[^\W_]+")
_MORE = "all any can de each from its la more my off one only our out per two un up we without you your"
_FUNCTION_WORDS = STOP_WORDS | frozenset(_MORE.split())


@lru_cache(maxsize=100_000)
def title_nouns(title: str) -> tuple[str, ...]:
    """Return a title's words, lower case and with repeats, less function words, single letters but t, and numbers."""
    return tuple(
        word
        for word in _WORD.findall(title.lower())
        if word.isalpha() and word not in _FUNCTION_WORDS and (len(word) > 1 or word == "t")
    )


Nouns = Callable[[str, str], Sequence[str]]
"""From an asin and its title to the title's nouns."""


def noun_source(given: Mapping[str, Sequence[str]] | str) -> Nouns:
    """Return where nouns come from: "spacy", a JSON file of lists by asin, or such a mapping; empty: `title_nouns`.

    What a list does not have is guessed. Raises `UserError` for a file that is none, or where spaCy is not there.
    """
    if given == "spacy":
        return _tagger()
    known = read_nouns(given) if given and isinstance(given, str) else given

    def nouns(asin: str, title: str) -> Sequence[str]:
        found = known.get(asin) if isinstance(known, Mapping) else None
        return title_nouns(title) if found is None else found

    return nouns


def read_nouns(path: str) -> dict[str, list[str]]:
    """Return a JSON file of title nouns by asin; raises `UserError` where it is none."""
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"the list of nouns '{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"the list of nouns '{path}' is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(words, list) for words in found.values()):
        raise UserError(f"the list of nouns '{path}' is no object of lists, one for each asin")
    return found


def _tagger() -> Nouns:
    """Return the original's way: what spaCy's model tags as noun or proper noun, lower case."""
    try:
        import spacy  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("nouns = 'spacy' needs spaCy: pip install 'envrl[spacy]'") from None
    try:
        tag = spacy.load(SPACY_MODEL)
    except OSError:
        raise UserError(f"spaCy lacks the model {SPACY_MODEL}: python -m spacy download {SPACY_MODEL}") from None

    @lru_cache(maxsize=100_000)
    def tagged(title: str) -> tuple[str, ...]:
        return tuple(token.text.lower() for token in tag(title) if token.pos_ in ("NOUN", "PROPN"))

    return lambda asin, title: tagged(title)
