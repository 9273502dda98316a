"""Products as the original loads them: what is skipped, how prices and options are read, what is drawn.

Source: princeton-nlp/WebShop, `web_agent_site/engine/protocol.py`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from envrl.errors import UserError

DEFAULT_PRICE = 100.0
_NOT_A_NUMBER = re.compile(r"[^\d.]")
_FIELDS = ("asin", "name", "category", "query", "product_category", "full_description", "small_description")


@dataclass(frozen=True, slots=True)
class Product:
    """One product; `price_range` holds one or two prices in dollars, `options` the values of each group, in order."""

    asin: str
    name: str
    category: str
    query: str
    product_category: str
    description: str
    bullet_points: tuple[str, ...]
    price_tag: str
    price_range: tuple[float, ...]
    options: dict[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    instruction: str | None = None
    instruction_attributes: tuple[str, ...] = ()


@dataclass(slots=True)
class Oddities:
    """How many records of a catalogue were left out or mended, by reason."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.items())


def read_products(
    records: Iterable[Mapping[str, Any]], attributes: Mapping[str, Mapping[str, Any]], oddities: Oddities | None = None
) -> Iterator[Product]:
    """Yield the products of a catalogue in its order, as the original keeps them.

    Left out: the asin "nan", one of more than ten characters, one seen before. Raises `UserError` for a record that is
    no product.
    """
    oddities = oddities or Oddities()
    seen: set[str] = set()
    for number, record in enumerate(records):
        _require_product(record, number)
        asin = record["asin"]
        if asin == "nan" or len(asin) > 10 or asin in seen:
            oddities.add("with an asin that is seen before, too long or missing, left out")
            continue
        seen.add(asin)
        yield _product(record, attributes.get(asin) or {}, oddities)


def _require_product(record: Any, number: int) -> None:
    if not isinstance(record, Mapping):
        raise UserError(f"record {number} of the product catalogue is no product but {type(record).__name__}")
    missing = [name for name in _FIELDS if name not in record]
    if missing:
        raise UserError(f"record {number} of the product catalogue lacks {', '.join(missing)}")
    wrong = [name for name in ("asin", "name", "query", "product_category") if not isinstance(record[name], str)]
    if wrong:
        raise UserError(f"{wrong[0]} of record {number} of the product catalogue is no text")


def _product(record: Mapping[str, Any], extra: Mapping[str, Any], oddities: Oddities) -> Product:
    bullets = record["small_description"]
    price_range, tag = read_price(record.get("pricing"), oddities)
    return Product(
        asin=record["asin"],
        name=record["name"],
        category=str(record["category"]),
        query=record["query"].lower().strip(),
        product_category=record["product_category"],
        description=str(record["full_description"]),
        bullet_points=tuple(map(str, bullets)) if isinstance(bullets, list | tuple) else (str(bullets),),
        price_tag=tag,
        price_range=price_range,
        options=read_options(record.get("customization_options"), oddities),
        attributes=tuple(extra["attributes"]) if "attributes" in extra else ("DUMMY_ATTR",),
        instruction=extra.get("instruction"),
        instruction_attributes=tuple(extra.get("instruction_attributes") or ()),
    )


def read_price(pricing: Any, oddities: Oddities | None = None) -> tuple[tuple[float, ...], str]:
    """Return a product's price, or the two ends of its range, and the tag that pages show.

    No price is $100.0. Where nothing after a `$` is a number the original stops; here it counts as no price.
    """
    if not pricing:
        return (DEFAULT_PRICE,), f"${DEFAULT_PRICE}"
    try:
        prices = [float(_NOT_A_NUMBER.sub("", part)) for part in str(pricing).split("$")[1:]]
        low, *rest = prices
    except ValueError:
        if oddities is not None:
            oddities.add("with a price that is no number, taken as $100.0")
        return (DEFAULT_PRICE,), f"${DEFAULT_PRICE}"
    return (low, *rest[:1]), f"${low} to ${rest[0]}" if rest else f"${low}"


def read_options(groups: Any, oddities: Oddities | None = None) -> dict[str, tuple[str, ...]]:
    """Return the values of each option group, in order, repeats included; a null group is left out.

    Where a value is missing the original stops; here it is left out.
    """
    options: dict[str, tuple[str, ...]] = {}
    if not isinstance(groups, Mapping):
        if groups and oddities is not None:
            oddities.add("with options that are no groups, left out")
        return options
    for name, contents in groups.items():
        if contents is None:
            continue
        entries = contents if isinstance(contents, list | tuple) else ()
        values = [e["value"] for e in entries if isinstance(e, Mapping) and isinstance(e.get("value"), str)]
        if (len(values) < len(entries) or entries != contents) and oddities is not None:
            oddities.add("with an option that has no value, left out")
        options[str(name).lower()] = tuple(value.strip().replace("/", " | ").lower() for value in values)
    return options


def draw_price(product: Product, generator: random.Random) -> float:
    """Return a product's price in dollars: its own, or one drawn uniformly from its range."""
    low, *rest = product.price_range
    return generator.uniform(low, rest[0]) if rest else low


def search_text(product: Product) -> str:
    """Return the text by which a product is found: title, description, first bullet, options; lower case."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    first = product.bullet_points[0] if product.bullet_points else ""
    return " ".join((product.name, product.description, first, options)).lower()


def score_record(product: Product) -> dict[str, Any]:
    """Return what `score` reads of a product, as the reference cases have it."""
    names = ("asin", "name", "query", "product_category", "attributes", "bullet_points", "description")
    return {name: getattr(product, name) for name in names}
