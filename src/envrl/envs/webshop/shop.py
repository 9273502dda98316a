"""What a shop has: products, prices, goals, a search engine; given in memory, or stored once and memory-mapped."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

from envrl.envs.webshop.goals import Goal
from envrl.envs.webshop.index import Index
from envrl.envs.webshop.products import Product, draw_price

SEARCHED = 50
"""Products that a search returns at most."""


class Shop(Protocol):
    """Products in catalogue order, their prices in dollars, the goals, and which of the products searches find."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def products(self) -> Sequence[Product]: ...

    @property
    def goals(self) -> Sequence[Goal]: ...

    def product(self, asin: str) -> Product | None: ...

    def price(self, asin: str) -> float: ...

    def search(self, query: str) -> Sequence[str]: ...


class GivenShop:
    """A shop over products and goals in memory; prices not given are drawn with seed 0, as `make_goals` draws them."""

    name = "goal"
    fingerprint = ""

    def __init__(
        self,
        products: Iterable[Product],
        goals: Sequence[Goal],
        search: Callable[[str], Sequence[str]] | None,
        prices: Mapping[str, float],
    ) -> None:
        self.products = list(products)
        self.goals = goals
        self._search = search
        self._by_asin = {product.asin: product for product in self.products}
        generator = random.Random(0)
        self._prices = {p.asin: draw_price(p, generator) for p in self.products} | dict(prices)

    def product(self, asin: str) -> Product | None:
        return self._by_asin.get(asin)

    def price(self, asin: str) -> float:
        return self._prices[asin]

    def search(self, query: str) -> Sequence[str]:
        found = self._search(query) if self._search else [asin for asin, _ in self._index.search(query, SEARCHED)]
        return [asin for asin in found if asin in self._by_asin]

    @cached_property
    def _index(self) -> Index:
        return Index.of(self.products)


def listed(products: Iterable[Product], field: str, value: str) -> list[str]:
    """Return the products that have an attribute (<a>), a category (<c>) or a query (<q>), in catalogue order."""

    def has(product: Product) -> Any:
        return (
            value in product.attributes
            if field == "<a>"
            else value == {"<c>": product.category, "<q>": product.query}[field]
        )

    return [product.asin for product in products if has(product)]
