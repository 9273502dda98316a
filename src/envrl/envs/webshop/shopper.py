"""A scripted shopper: it uses what the pages show and nothing else, and buys the first product that seems to fit."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from envrl.envs.webshop.analysis import analyze
from envrl.envs.webshop.pages import BACK, BUY, PREVIOUS, Page
from envrl.envs.webshop.products import Product
from envrl.envs.webshop.visit import asked_words
from envrl.types import Observation

_LIMIT = re.compile(r"price lower than ([\d.]+) dollars")
_PRICE = re.compile(r"\$(\d+(?:\.\d+)?)")
_ASKING = frozenset(
    analyze(
        "i am looking for need want would like to buy find me show can you please some a an get with price and "
        "lower than dollars"
    )
)


@dataclass(slots=True)
class Shopper:
    """One episode's shopper; `act(observation)` returns its next command.

    It searches with all words of the instruction, opens the results in their order, those above the price limit last,
    reads the features of up to `reads` of them until one has all the words, else goes back to the best, chooses the
    options that the instruction names, and buys. With `reads` = 0 it buys the first.
    """

    reads: int = 2
    _seen: dict[str, int] = field(default_factory=dict)
    _settled: str = ""
    _chosen: set[str] = field(default_factory=set)

    def act(self, observation: Observation) -> str:
        page: Page = observation.info["page"]
        if page.kind == "start":
            search = observation.templates[0]
            return f"{search.before}{' '.join(search.words)}{search.after}"
        if page.kind == "results":
            return self._open(page)
        if page.kind == "sub":
            return self._note(page)
        return self._shop(page) if page.kind == "item" and page.product else f"click[{BACK}]"

    def _open(self, page: Page) -> str:
        """Open the item that promises most, of those not read yet, or the best of those read."""
        if not page.items:
            return f"click[{BACK}]"
        if self._seen and len(self._seen) >= self.reads:
            self._settled = max(self._seen, key=lambda asin: self._seen[asin])
            return f"click[{self._settled.lower()}]"
        fresh = [item for item in page.items if item.asin not in self._seen] or list(page.items)
        best = max(fresh, key=lambda item: affordable(item, page.instruction))
        return f"click[{best.asin.lower()}]"

    def _shop(self, page: Page) -> str:
        product = page.product
        assert product is not None
        if self._settled != product.asin and self.reads:
            if product.asin not in self._seen:
                missing = lacking(page, product)
                self._seen[product.asin] = -missing
                if missing:
                    return "click[features]"
            elif self._is_worse(product.asin):
                return f"click[{PREVIOUS}]"
            self._settled = product.asin
        for value in mentioned(page):
            if value not in self._chosen:
                self._chosen.add(value)
                return f"click[{value}]"
        return f"click[{BUY}]"

    def _is_worse(self, asin: str) -> bool:
        """Return whether something else should be bought: it lacks words, and others can be read or lack fewer."""
        lacks = self._seen[asin] < 0 and len(self._seen) < self.reads
        return lacks or self._seen[asin] < max(self._seen.values())

    def _note(self, page: Page) -> str:
        """Remember how many wanted words the item still lacks after its features have been read."""
        product = page.product
        assert product is not None
        told = set(analyze(" ".join((_on_page(product), *product.bullet_points))))
        self._seen[product.asin] = -len(_wanted(page.instruction) - told)
        return f"click[{PREVIOUS}]"


@lru_cache(maxsize=20_000)
def wanted_phrases(instruction: str) -> tuple[str, ...]:
    """Return what an instruction wants, in phrases: of "i want a red rug for kids, please" red rug and kids.

    A phrase ends with a comma, before a stop word, and before a word of asking; the price limit is none of them.
    """
    phrases: list[list[str]] = [[]]
    for part, word in asked_words(instruction):
        tells = bool(set(analyze(word)) - _ASKING)
        if tells:
            phrases[-1].append(word)
        if phrases[-1] and (not tells or part.endswith(",")):
            phrases.append([])
    return tuple(dict.fromkeys(" ".join(phrase) for phrase in phrases if phrase))


@lru_cache(maxsize=20_000)
def _wanted(instruction: str) -> frozenset[str]:
    return frozenset(analyze(_LIMIT.sub("", instruction.lower()))) - _ASKING


def lacking(page: Page, product: Product) -> int:
    """Return how many of the words that say what is wanted an item's page does not have."""
    return len(_wanted(page.instruction) - set(analyze(_on_page(product))))


def _on_page(product: Product) -> str:
    """Return what an item's page says, options included."""
    options = " ".join(" ".join((name, *values)) for name, values in product.options.items())
    return f"{product.name} {options}"


def affordable(product: Product, instruction: str) -> bool:
    """Return whether a product's lowest price is within the instruction's limit, where both say one."""
    limit, price = price_limit(instruction), _PRICE.search(product.price_tag)
    return limit is None or not price or float(price[1]) <= limit


def price_limit(instruction: str) -> float | None:
    """Return the price, in dollars, that an instruction wants to stay below; None where it says none."""
    found = _LIMIT.search(instruction)
    return float(found[1]) if found else None


def mentioned(page: Page) -> list[str]:
    """Return for each option group the longest of its values that the instruction holds, as words of their own."""
    product = page.product
    assert product is not None
    text = f" {re.sub(r'[^a-z0-9.]+', ' ', page.instruction.lower())} "
    found = []
    for values in product.options.values():
        named = [v for v in values if f" {' '.join(re.sub(r'[^a-z0-9.]+', ' ', v).split())} " in text and "[" not in v]
        if named:
            found.append(max(named, key=len))
    return found
