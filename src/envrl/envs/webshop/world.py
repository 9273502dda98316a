"""The shop as a world: one goal a task, a search engine, pages, and a purchase that is scored at the end."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, overload

from envrl.envs.protocol import TextEnv
from envrl.envs.webshop.catalogue import PRODUCTS as GENERATED
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
from envrl.envs.webshop.products import Product, read_products
from envrl.envs.webshop.reward import score
from envrl.envs.webshop.shop import SEARCHED, GivenShop, Shop, listed
from envrl.errors import UserError
from envrl.types import Observation, Step, Task, Template

SPLITS = {"test": slice(0, 500), "valid": slice(500, 1500), "train": slice(1500, None), "all": slice(0, None)}
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


class SavedVisit(NamedTuple):
    """A shop visit's state as plain values, for any world over the same shop."""

    task: Task
    seed: int
    state: _State


@dataclass(frozen=True, slots=True)
class _State:
    """Where a visitor stands; `found` is what the last search returned, `searches` counts those made."""

    kind: str = "start"
    found: tuple[str, ...] = ()
    number: int = 1
    asin: str = ""
    sub: str = ""
    options: tuple[tuple[str, str], ...] = ()
    searches: int = 0
    reward: float = 0.0


class WebShop:
    """WebShop, one goal at a time; see `TextEnv` for the methods.

    `observation.info` has `clickables`, `has_search_bar` and `page`, the record that the text was made from.
    """

    def __init__(
        self,
        products: Sequence[Mapping[str, Any]] = (),
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
        goals: Sequence[Goal] = (),
        search: Callable[[str], Sequence[str]] | None = None,
        prices: Mapping[str, float] | None = None,
        nouns: Mapping[str, Sequence[str]] | str = "",
        fixes: bool = False,
        shop: Callable[[], Shop] | None = None,
    ) -> None:
        """Open a shop over raw products, their attributes and goals; `search(query)` returns asins, by default BM25.

        `prices` (dollars, by asin) stand in for drawn ones; `nouns`, a mapping or a JSON file of one, gives the nouns
        of titles by asin, where `title_nouns` would guess them; `shop` opens another shop in place of all this.
        """

        def given() -> Shop:
            return GivenShop(read_products(products, attributes or {}), goals, search, prices or {})

        self._open = shop or given
        self._given_nouns = nouns
        self._fixes = fixes
        self._visit: _Visit | None = None

    @cached_property
    def shop(self) -> Shop:
        """The shop, read or generated when first needed."""
        return self._open()

    @cached_property
    def _nouns(self) -> Mapping[str, Sequence[str]]:
        if not isinstance(self._given_nouns, str):
            return self._given_nouns
        return read_nouns(self._given_nouns) if self._given_nouns else {}

    def tasks(self, split: str) -> Sequence[Task]:
        """Return a split's goals in their order: test 0–499, valid 500–1499, train the rest, or all."""
        if split not in SPLITS:
            raise UserError(f"the world 'webshop' has no split '{split}'; choose from {', '.join(SPLITS)}")
        return GoalTasks(self.shop, split, range(len(self.shop.goals))[SPLITS[split]])

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start at the search bar with a task's goal; `seed` decides what the search `<r>` returns."""
        self._visit = _Visit(self.shop, task, self._goal(task), seed)
        return self._visit.observe()

    def step(self, action: str) -> Step:
        """Carry out `search[words]` or `click[what the page offers]`; anything else leaves the page as it is."""
        if self._visit is None:
            raise RuntimeError("step was called before the first reset")
        visit = self._visit
        bought = visit.act(*parse_action(action), fixes=self._fixes)
        if bought is None:
            return Step(visit.observe(), 0.0, False, False)
        scores = self._score(visit, bought)
        reward = float(scores["reward"])
        visit.go(replace(visit.state, kind="done", reward=reward))
        return Step(
            visit.observe(), reward, True, reward == 1.0, {"scores": scores, "options": dict(visit.state.options)}
        )

    def save(self) -> SavedVisit:
        """Return the present state: plain values, picklable."""
        if self._visit is None:
            raise RuntimeError("save was called before the first reset")
        return SavedVisit(self._visit.task, self._visit.seed, self._visit.state)

    def load(self, state: SavedVisit) -> None:
        """Go back to a saved state, of this goal or of another."""
        self._visit = _Visit(self.shop, state.task, self._goal(state.task), state.seed)
        self._visit.go(state.state)

    def goal(self, task: Task) -> Goal:
        """Return what a task asks for, which the shopper does not see."""
        return self._goal(task)

    def subgoals(self) -> frozenset[str]:
        """Return what has been reached of: the wanted product found, and opened; each wanted option chosen."""
        visit = self._visit
        if visit is None:
            return frozenset()
        goal, page = visit.goal, visit.page
        wanted = goal["goal_options"]
        values = set(wanted.values() if isinstance(wanted, Mapping) else wanted)
        reached = {f"chosen {value}" for _, value in visit.state.options if value in values}
        if page.product is not None and page.product.asin == goal["asin"]:
            reached |= {"found", "opened"}
        if any(item.asin == goal["asin"] for item in page.items):
            reached.add("found")
        return frozenset(reached)

    def expert(self, seed: int) -> Callable[[Observation], str]:
        """Return a scripted shopper for one episode; it uses only what it sees."""
        from envrl.envs.webshop.shopper import Shopper

        return Shopper().act

    def _goal(self, task: Task) -> Goal:
        name, _, number = task.id.rpartition("-")
        if name != self.shop.name or not number.isdecimal() or int(number) >= len(self.shop.goals):
            raise UserError(
                f"the world 'webshop' has no task '{task.id}'; its splits are {', '.join(SPLITS)}, its tasks "
                f"{self.shop.name}-0 to {self.shop.name}-{len(self.shop.goals) - 1}"
            )
        return self.shop.goals[int(number)]

    def _score(self, visit: _Visit, product: Product) -> dict[str, Any]:
        goal = visit.goal
        nouns = {"product": self._nouns.get(product.asin), "goal": self._nouns.get(goal["asin"])}
        return score(
            {
                "asin": product.asin,
                "name": product.name,
                "query": product.query,
                "product_category": product.product_category,
                "attributes": product.attributes,
                "bullet_points": product.bullet_points,
                "description": product.description,
            },
            goal,
            dict(visit.state.options),
            self.shop.price(product.asin),
            {name: words for name, words in nouns.items() if words is not None},
            self._fixes,
        )


class DataShop(WebShop):
    """WebShop on downloaded data, which it can name."""

    def fingerprint(self, split: str) -> str:
        """Return a SHA-256 over the files that all splits are made of, and how goals are drawn from them."""
        return self.shop.fingerprint


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


class GoalTasks(Sequence[Task]):
    """The tasks of a split, made when asked for."""

    def __init__(self, shop: Shop, split: str, numbers: range) -> None:
        self._shop, self._split, self._numbers = shop, split, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return GoalTasks(self._shop, self._split, self._numbers[index])
        number = self._numbers[index]
        return Task(f"{self._shop.name}-{number}", self._split, kind=str(self._shop.goals[number]["category"]))


class _Visit:
    """One episode: a goal, where the visitor stands, and the page that shows it."""

    def __init__(self, shop: Shop, task: Task, goal: Goal, seed: int) -> None:
        self.shop, self.task, self.goal, self.seed = shop, task, goal, seed
        self.go(_State())

    def go(self, state: _State) -> None:
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

    def _clicked(self, name: str, fixes: bool) -> _State:
        state, product = self.state, self.page.product
        if name == BACK:
            return _State(searches=state.searches)
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

    def _clicked_result(self, name: str, fixes: bool) -> _State:
        if name in (NEXT, PREVIOUS):
            number = self.page.number + (1 if name == NEXT else -1)
            last = max(1, -(-self.page.total // PAGE_SIZE))
            return replace(self.state, number=min(number, last) if fixes else number)
        item = next(item for item in self.page.items if item.asin.lower() == name)
        return replace(self.state, kind="item", asin=item.asin)

    def _search(self, query: str) -> None:
        searches = self.state.searches + 1
        self.go(_State("results", tuple(self._found(query, searches)), searches=searches))

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
    asked = _PRICE_LIMIT.sub("", instruction.lower())
    words = (word.strip(_EDGES) for word in asked.split())
    return Template("search[", tuple(dict.fromkeys(word for word in words if word))[:_WORDS_OF_TASK], "]")


def webshop(
    data: str = "",
    products: int = 0,
    goals: str = "",
    seed: int = 0,
    nouns: str | Mapping[str, Sequence[str]] = "",
    fixes: bool = False,
    compact: int = 0,
) -> TextEnv:
    """Return WebShop on the original's files in `data` (empty: $WEBSHOP_DATA), or on a generated catalogue without any.

    `products` takes only the first of the catalogue (0: all; generated: 10,000), `goals` is human or synthetic (empty:
    synthetic on the 1,000-product catalogue, else human), `seed` draws prices, their limits and the generated
    catalogue, `nouns` is a JSON file (or mapping) of title nouns by asin. `compact` shows texts of at most that many
    words, and items by number (`CompactShop`). Nothing is read until needed.
    """
    if goals not in ("", "human", "synthetic"):
        raise UserError(f"the goals of the world 'webshop' are human or synthetic, not '{goals}'")
    if products < 0:
        raise UserError(f"the world 'webshop' takes a number of products of at least 0, not {products}")

    folder = data or os.environ.get("WEBSHOP_DATA", "")

    def shop() -> Shop:
        from envrl.envs.webshop.store import generated_shop, stored_shop

        if folder:
            return stored_shop(folder, products, seed, goals)
        return generated_shop(products or GENERATED, seed, goals or "human")

    world = (DataShop if folder else WebShop)(shop=shop, nouns=nouns, fixes=fixes)
    if not compact:
        return world
    from envrl.envs.webshop.compact import CompactDataShop, CompactShop

    return (CompactDataShop if folder else CompactShop)(world, compact)
