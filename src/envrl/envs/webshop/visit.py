"""One visit to the shop: where the visitor stands, the page that shows it, and where a command leads."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, cast

from envrl.envs.webshop.goals import Goal
from envrl.envs.webshop.pages import (
    BACK,
    BUY,
    NEXT,
    PAGE_SIZE,
    PREVIOUS,
    SUB_PAGES,
    Page,
    clickables,
    group_of,
    page_text,
)
from envrl.envs.webshop.products import Product
from envrl.envs.webshop.shop import SEARCHED, Shop, listed
from envrl.types import Observation, Task, Template

_WORDS_OF_TASK = 40
_PRICE_LIMIT = re.compile(r",? and price lower than [\d.]+ dollars\Z")
_EDGES = " .,:;!?()[]{}<>'\"-_/\\&|*+=~`@#$%^"


def parse_action(action: str) -> tuple[str, str]:
    """Return (verb, lower-cased argument) of `verb[argument]`, both empty where the action has not this form.

    It is what Python's `re.match(r"(.+)\\[(.+)\\]", action)` finds, in linear time. Raises `TypeError` for no text.
    """
    if not isinstance(action, str):
        raise TypeError(f"an action is a text, not {type(action).__name__}")
    line = action.split("\n", 1)[0]
    close = line.rfind("]")
    opened = line.rfind("[", 1, close - 1) if close > 2 else -1
    return (line[:opened], line[opened + 1 : close].lower()) if opened > 0 else ("", "")


@dataclass(frozen=True, slots=True)
class State:
    """Where a visitor stands; `found` is what the last search returned, `searches` counts those made."""

    kind: str = "start"
    found: tuple[str, ...] = ()
    number: int = 1
    asin: str = ""
    sub: str = ""
    options: tuple[tuple[str, str], ...] = ()
    searches: int = 0
    reward: float = 0.0


class Visit:
    """One episode: a goal, where the visitor stands, and the page that shows it."""

    def __init__(self, shop: Shop, task: Task, goal: Goal, seed: int) -> None:
        self.shop, self.task, self.goal, self.seed = shop, task, goal, seed
        self.go(State())

    def go(self, state: State) -> None:
        """Stand elsewhere."""
        self.state = state
        self.page = self._page()

    def observe(self) -> Observation:
        offered = clickables(self.page)
        starts = self.page.kind == "start"
        return Observation(
            page_text(self.page),
            () if starts else _click_commands(offered),
            {"clickables": list(offered), "has_search_bar": starts, "page": self.page},
            (search_template(self.page.instruction),) if starts else (),
        )

    def _page(self) -> Page:
        state, instruction = self.state, self.goal["instruction_text"]
        if state.kind == "results":
            shown = state.found[(state.number - 1) * PAGE_SIZE : state.number * PAGE_SIZE]
            items = tuple(item for asin in shown if (item := self.shop.product(asin)) is not None)
            return Page("results", instruction, state.number, len(state.found), items)
        kind = cast(Literal["start", "item", "sub", "done"], state.kind)
        product = self.shop.product(state.asin) if state.asin else None
        return Page(kind, instruction, product=product, sub=state.sub, options=dict(state.options), reward=state.reward)

    def act(self, verb: str, argument: str, *, fixes: bool) -> Product | None:
        """Follow a command to its page; return the product where it was a purchase."""
        if verb == "search" and not (fixes and self.state.kind == "done"):
            self._search(argument)
        elif verb == "click" and argument != "search" and argument in clickables(self.page):
            if self.state.kind == "item" and argument == BUY:
                return self.page.product
            self.go(self._clicked(argument, fixes))
        return None

    def _clicked(self, name: str, fixes: bool) -> State:
        state, product = self.state, self.page.product
        if name == BACK:
            return State(searches=state.searches)
        if state.kind == "results":
            return self._clicked_result(name, fixes)
        if state.kind == "sub":
            return replace(state, kind="item", sub="")
        if name == PREVIOUS:
            return replace(state, kind="results", asin="", options=())
        if name in SUB_PAGES:
            return replace(state, kind="sub", sub=name)
        group = group_of(product, name) if product is not None else None
        assert group is not None, "what is left is an option"
        return replace(state, options=tuple((dict(state.options) | {group: name}).items()))

    def _clicked_result(self, name: str, fixes: bool) -> State:
        if name in (NEXT, PREVIOUS):
            number = self.page.number + (1 if name == NEXT else -1)
            last = max(1, -(-self.page.total // PAGE_SIZE))
            return replace(self.state, number=min(number, last) if fixes else number)
        item = next(item for item in self.page.items if item.asin.lower() == name)
        return replace(self.state, kind="item", asin=item.asin)

    def _search(self, query: str) -> None:
        searches = self.state.searches + 1
        self.go(State("results", tuple(self._found(query, searches)), searches=searches))

    def _found(self, query: str, searches: int) -> Sequence[str]:
        """Return what a search finds; its first word may be one of the original's marks instead of a word."""
        first, _, rest = query.partition(" ")
        if first == "<r>":
            generator = random.Random(f"{self.seed} {self.task.id} {searches}")
            count = min(SEARCHED, len(self.shop.products))
            return [product.asin for product in generator.sample(self.shop.products, count)]
        if first in ("<a>", "<c>", "<q>"):
            value = rest.split(" ", 1)[0] if first == "<c>" else rest
            return listed(self.shop.products, first, value.strip())
        return self.shop.search(query)


@lru_cache(maxsize=20_000)
def _click_commands(offered: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command for each clickable that a command can name; one that holds a bracket cannot be."""
    return tuple(f"click[{name}]" for name in offered if parse_action(f"click[{name}]") == ("click", name))


@lru_cache(maxsize=20_000)
def search_template(instruction: str) -> Template:
    """Return the search command with the words of an instruction, its price limit left out, as its free words."""
    words = dict.fromkeys(word for _, word in asked_words(instruction))
    return Template("search[", tuple(words)[:_WORDS_OF_TASK], "]")


def asked_words(instruction: str) -> Iterator[tuple[str, str]]:
    """Yield an instruction's words, as written and without what surrounds them; its price limit is left out."""
    for part in _PRICE_LIMIT.sub("", instruction.lower()).split():
        if word := part.strip(_EDGES):
            yield part, word
