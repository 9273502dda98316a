"""A generated catalogue in the original's file format: each product is a function of (seed, index) alone."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

PRODUCTS = 10_000
VERSION = 1
"""Rises when the same seed gives another catalogue."""
INSTRUCTED = 12_000
"""Only the first products of a catalogue have an instruction: as many goals as people wrote for the original."""

_ASIN_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SCATTER = 1_742_313_987_161  # shares no factor with 36, so that no two indices below 36⁸ share an asin
_NO_PRICE, _RANGE = 0.06, 0.1
_REQUESTS = (
    "i am looking for {thing} with {attributes}{options}",
    "i need {thing} with {attributes}{options}",
    "can you find {first}{rest}{options}",
    "i would like {thing}{options} with {attributes}",
    "{first}{rest}{options}, please",
    "show me {first}{rest}{options}",
)


class Record(NamedTuple):
    """One product in the original's three files: the catalogue, the attributes, the human instructions."""

    product: dict[str, Any]
    attributes: dict[str, Any]
    instructions: list[dict[str, Any]]


@cache
def _words() -> dict[str, Any]:
    return tomllib.loads(files("envrl.envs.webshop").joinpath("catalogue.toml").read_text(encoding="utf-8"))


def generate(count: int = PRODUCTS, seed: int = 0) -> Iterator[Record]:
    """Yield the first `count` products of the catalogue that a seed stands for."""
    for index in range(count):
        yield generate_product(index, seed)


def generate_product(index: int, seed: int = 0) -> Record:
    """Return one product of the catalogue that a seed stands for, with what people say who look for it."""
    words = _words()
    draw = random.Random(f"webshop {VERSION} {seed} {index}")
    thing, kind = draw.choice(list(words["kinds"].items()))
    category, query, path, level, features, groups, cheapest, dearest = kind
    attributes = draw.sample(words["lists"][features], draw.randint(3, 6))
    options = {name: _some(draw, words["options"][name], 3, 6) for name in groups if draw.random() < 0.8}
    brand = draw.choice(words["brands"])
    asin = _asin(index)
    product = {
        "asin": asin,
        "name": _title(draw, brand, thing, attributes, words),
        "category": category,
        "query": query,
        "product_category": f"{words['paths'][path]} › {level}",
        "pricing": _pricing(draw, cheapest, dearest),
        "full_description": _description(draw, brand, thing, attributes, words),
        "small_description": _bullets(draw, brand, attributes, words),
        "customization_options": {
            name: [{"value": value, "image": None} for value in values] for name, values in options.items()
        },
        "images": [""],
    }
    wanted = draw.sample(attributes, min(draw.choice((1, 1, 2, 2, 3)), len(attributes)))
    chosen = {name: draw.choice(values) for name, values in options.items()}
    request = _request(draw, thing, wanted, chosen)
    extra = {
        "attributes": attributes,
        "instruction": f"Find me {', '.join(wanted)} {query}",
        "instruction_attributes": wanted,
    }
    human = {
        "asin": asin,
        "instruction": request,
        "instruction_attributes": wanted,
        "instruction_options": list(chosen.values()),
    }
    return Record(product, extra, [human] if index < INSTRUCTED else [])


def _asin(index: int) -> str:
    number = index * _SCATTER % 36**8
    digits = []
    for _ in range(8):
        number, digit = divmod(number, 36)
        digits.append(_ASIN_DIGITS[digit])
    return "B0" + "".join(digits)


def _some(draw: random.Random, values: Sequence[str], least: int, most: int) -> list[str]:
    """Return some of the values, in their order."""
    kept = set(draw.sample(range(len(values)), min(len(values), draw.randint(least, most))))
    return [value for number, value in enumerate(values) if number in kept]


def _title(draw: random.Random, brand: str, thing: str, attributes: Sequence[str], words: Mapping[str, Any]) -> str:
    shown = draw.sample(attributes, draw.randint(1, 2))
    parts = [f"{brand} {shown[0].title()} {thing.title()}", *(a.title() for a in shown[1:])]
    if draw.random() < 0.5:
        parts.append(draw.choice(words["ornaments"]).title())
    return ", ".join(parts)


def _pricing(draw: random.Random, cheapest: float, dearest: float) -> str:
    if draw.random() < _NO_PRICE:
        return ""
    price = round(cheapest * (dearest / cheapest) ** draw.random(), 2)
    return f"${price} - ${round(price * draw.uniform(1.1, 1.6), 2)}" if draw.random() < _RANGE else f"${price}"


def _description(
    draw: random.Random, brand: str, thing: str, attributes: Sequence[str], words: Mapping[str, Any]
) -> str:
    said = draw.sample(attributes, draw.randint(1, 2))
    sentences = [_sentence(draw, brand, attribute, words) for attribute in said]
    return " ".join([f"{thing.capitalize()} from {brand}.", *sentences, draw.choice(words["closings"])])


def _bullets(draw: random.Random, brand: str, attributes: Sequence[str], words: Mapping[str, Any]) -> list[str]:
    said = draw.sample(attributes, len(attributes))
    return [f"{attribute.upper()}: {_sentence(draw, brand, attribute, words)}" for attribute in said]


def _sentence(draw: random.Random, brand: str, attribute: str, words: Mapping[str, Any]) -> str:
    sentence = draw.choice(words["sentences"]).format(attribute, brand)
    return sentence[0].upper() + sentence[1:]


def _request(draw: random.Random, thing: str, wanted: Sequence[str], chosen: Mapping[str, str]) -> str:
    """Return what somebody says who wants a thing with these attributes and options."""
    named = draw.random() < 0.7
    said = [f"{name} {value}" if named else value for name, value in chosen.items()]
    return draw.choice(_REQUESTS).format(
        thing=_with_article(thing, thing),
        first=_with_article(f"{wanted[0]} {thing}", thing),
        attributes=" and ".join(wanted),
        rest=f" with {' and '.join(wanted[1:])}" if wanted[1:] else "",
        options=f" in {' and '.join(said)}" if said else "",
    )


def _with_article(phrase: str, thing: str) -> str:
    if thing.endswith("s") and not thing.endswith("ss"):
        return f"some {phrase}"
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"
