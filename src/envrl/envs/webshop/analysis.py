"""From text to search terms, as Lucene's English analysis makes them: words, possessives, stop words, Porter's stems.

Source: Unicode Standard Annex 29 (word boundaries), M. F. Porter, "An algorithm for suffix stripping" (1980) with the
changes that its author lists on tartarus.org, and the behaviour of Anserini's default English analyser.
"""

from __future__ import annotations

from functools import lru_cache

import regex

_STOP_LIST = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
STOP_WORDS = frozenset(_STOP_LIST.split())
"""Lucene's 33 English stop words."""

_LONGEST = 255
"""Characters of a word; a longer one is cut into pieces of this length."""

_JOINED = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"  # what follows a character and never parts a word (rule WB4)
# Extended_Pictographic of Unicode 12.1, Lucene's; later versions took most plain symbols (★) out of it.
_PICTOGRAPH = (
    r"[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u2388\u23cf\u23e9-\u23f3"
    r"\u23f8-\u23fa\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705"
    r"\u2708-\u2712\u2714\u2716\u271d\u2721\u2728\u2733\u2734\u2744\u2747\u274c\u274e\u2753-\u2755\u2757\u2763-\u2767"
    r"\u2795-\u2797\u27a1\u27b0\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299"
    r"\U0001f000-\U0001f0ff\U0001f10d-\U0001f10f\U0001f12f\U0001f16c-\U0001f171\U0001f17e\U0001f17f\U0001f18e"
    r"\U0001f191-\U0001f19a\U0001f1ad-\U0001f1e5\U0001f201-\U0001f20f\U0001f21a\U0001f22f\U0001f232-\U0001f23a"
    r"\U0001f23c-\U0001f23f\U0001f249-\U0001f3fa\U0001f400-\U0001f53d\U0001f546-\U0001f64f\U0001f680-\U0001f6ff"
    r"\U0001f774-\U0001f77f\U0001f7d5-\U0001f7ff\U0001f80c-\U0001f80f\U0001f848-\U0001f84f\U0001f85a-\U0001f85f"
    r"\U0001f888-\U0001f88f\U0001f8ae-\U0001f8ff\U0001f90c-\U0001f93a\U0001f93c-\U0001f945\U0001f947-\U0001faff"
    r"\U0001fc00-\U0001fffd]"
)
_LETTER = rf"[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]{_JOINED}"
_DIGIT = rf"\p{{WB=Numeric}}{_JOINED}"
_LINK = rf"\p{{WB=ExtendNumLet}}{_JOINED}"
_BETWEEN_LETTERS = rf"[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{_JOINED}"
_BETWEEN_DIGITS = rf"[\p{{WB=MidNum}}\p{{WB=MidNumLet}}\p{{WB=Single_Quote}}]{_JOINED}"
_WORD = regex.compile(
    rf"[\p{{Han}}\p{{Hiragana}}]{_JOINED}"
    rf"|(?:\p{{WB=Regional_Indicator}}{_JOINED}){{2}}"
    rf"|{_PICTOGRAPH}{_JOINED}(?:(?<=\u200d){_PICTOGRAPH}{_JOINED})*"
    rf"|(?:{_LINK})*(?:"
    rf"(?:\p{{WB=Katakana}}{_JOINED})+"
    rf"|{_LETTER}(?:{_BETWEEN_LETTERS}(?={_LETTER}))?"
    rf"|{_DIGIT}(?:{_BETWEEN_DIGITS}(?={_DIGIT}))?"
    rf"|{_LINK})+"
    rf"|(?:\p{{LB=SA}}{_JOINED})+"
)
_LINKS = regex.compile(rf"(?:{_LINK})+")
_POSSESSIVE = regex.compile(r"['\u2019\uff07][sS]\Z")


def words(text: str) -> list[str]:
    """Return the words of a text by UAX #29, without those that hold neither letter, digit nor pictograph."""
    found: list[str] = []
    for match in _WORD.finditer(text):
        word = match.group()
        if not _LINKS.fullmatch(word):
            found += [word[i : i + _LONGEST] for i in range(0, len(word), _LONGEST)]
    return found


def analyze(text: str) -> list[str]:
    """Return the search terms of a text in their order, repeats included."""
    return [term for word in words(text) if (term := _term(word))]


@lru_cache(maxsize=200_000)
def _term(word: str) -> str:
    """Return a word's term, empty for a stop word."""
    lowered = _POSSESSIVE.sub("", word).lower()
    return "" if lowered in STOP_WORDS else stem(lowered)


# --- Porter's stemmer ------------------------------------------------------------------------------------------------

_STEP2 = {
    "a": (("ational", "ate"), ("tional", "tion")),
    "c": (("enci", "ence"), ("anci", "ance")),
    "e": (("izer", "ize"),),
    "l": (("bli", "ble"), ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous")),
    "o": (("ization", "ize"), ("ation", "ate"), ("ator", "ate")),
    "s": (("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous")),
    "t": (("aliti", "al"), ("iviti", "ive"), ("biliti", "ble")),
    "g": (("logi", "log"),),
}
_STEP3 = {
    "e": (("icate", "ic"), ("ative", ""), ("alize", "al")),
    "i": (("iciti", "ic"),),
    "l": (("ical", "ic"), ("ful", "")),
    "s": (("ness", ""),),
}
_STEP4 = {
    "a": ("al",),
    "c": ("ance", "ence"),
    "e": ("er",),
    "i": ("ic",),
    "l": ("able", "ible"),
    "n": ("ant", "ement", "ment", "ent"),
    "o": ("ion", "ou"),
    "s": ("ism",),
    "t": ("ate", "iti"),
    "u": ("ous",),
    "v": ("ive",),
    "z": ("ize",),
}


def stem(word: str) -> str:
    """Return Porter's stem of a lower-case word; words of one or two letters stay."""
    if len(word) < 3:
        return word
    word = _step1(word)
    if word[-1] == "y" and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    word = _replace(word, _STEP2.get(word[-2:-1], ()))
    word = _replace(word, _STEP3.get(word[-1:], ()))
    word = _step4(word)
    return _step5(word)


def _consonant(word: str, index: int) -> bool:
    letter = word[index]
    if letter == "y":
        return index == 0 or not _consonant(word, index - 1)
    return letter not in "aeiou"


def _measure(word: str) -> int:
    """Return m, the number of times a vowel run is followed by a consonant run."""
    pattern = "".join("c" if _consonant(word, i) else "v" for i in range(len(word)))
    return pattern.count("vc")


def _has_vowel(word: str) -> bool:
    return any(not _consonant(word, i) for i in range(len(word)))


def _doubled(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _consonant(word, len(word) - 1)


def _short(word: str) -> bool:
    """Whether a word ends consonant, vowel, consonant, and the last is not w, x or y."""
    last = len(word) - 1
    return (
        last >= 2
        and _consonant(word, last)
        and not _consonant(word, last - 1)
        and _consonant(word, last - 2)
        and word[-1] not in "wxy"
    )


def _step1(word: str) -> str:
    if word.endswith("s"):
        if word.endswith(("sses", "ies")):
            word = word[:-2]
        elif not word.endswith("ss"):
            word = word[:-1]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    for suffix in ("ed", "ing"):
        if word.endswith(suffix):
            return _mend(word[: -len(suffix)]) if _has_vowel(word[: -len(suffix)]) else word
    return word


def _mend(word: str) -> str:
    """Return what is left before -ed or -ing with the ending that it lost."""
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _doubled(word):
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if _measure(word) == 1 and _short(word) else word


def _replace(word: str, rules: tuple[tuple[str, str], ...]) -> str:
    for suffix, other in rules:
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            return rest + other if _measure(rest) > 0 else word
    return word


def _step4(word: str) -> str:
    for suffix in _STEP4.get(word[-2:-1], ()):
        if word.endswith(suffix):
            rest = word[: -len(suffix)]
            if suffix == "ion" and not rest.endswith(("s", "t")):
                return word
            return rest if _measure(rest) > 1 else word
    return word


def _step5(word: str) -> str:
    if word.endswith("e"):
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _short(word[:-1])):
            word = word[:-1]
    if word.endswith("ll") and _measure(word[:-1]) > 1:
        word = word[:-1]
    return word
