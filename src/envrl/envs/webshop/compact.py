"""The shop in few words, for small models: the same pages and rules, short texts, numbers to click, and reading aids.

                                       Your task is to: shop for table lamp, color khaki, price lower than 30.00 dollars
    search[for table lamp color khaki] found 50, page 1
                                       dear 1: rosmere easy clean table $76.51
                                       item 2: lumero table lamp $23.0
    click[item 2]                      item lumero table lamp $23.0
                                       lacks 0
                                       asked: option 1 khaki
                                       color: option 2 grey, option 3 pink
    click[option 1]                    color: khaki
                                       asked: nothing
    click[buy now]                     bought

What is above the price limit is "dear"; an opened item "lacks" so many of the instruction's words; the options that the
instruction names come first, as "asked", until they are chosen: all taken from the page and the instruction alone.
Everything else, rewards included, is the world behind it: a command is translated and carried out there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from envrl.envs.webshop.pages import ITEM_BUTTONS, Page, group_of
from envrl.envs.webshop.products import Product
from envrl.envs.webshop.shopper import Shopper, affordable, lacking, mentioned, price_limit, wanted_phrases
from envrl.envs.webshop.visit import parse_action
from envrl.envs.webshop.world import SavedVisit, WebShop
from envrl.types import Observation, Step, Task, Template

_PHRASES = 20


class CompactShop:
    """A `WebShop` that shows titles and texts of at most `words` words; see `TextEnv` for the methods."""

    def __init__(self, shop: WebShop, words: int = 10) -> None:
        self.world = shop
        self._words = words
        self._page: Page | None = None

    def tasks(self, split: str) -> Sequence[Task]:
        """Return a split's goals, those of the world behind it."""
        return self.world.tasks(split)

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start at the search bar with a task's goal."""
        return self._shown(self.world.reset(task, seed), "")

    def step(self, action: str) -> Step:
        """Carry out `search[words]` or a click; `click[item 3]` opens the third item of the page."""
        if self._page is None:
            raise RuntimeError("step was called before the first reset")
        told = original_action(action, self._page)
        verb, name = parse_action(told)
        step = self.world.step(told)
        return replace(step, observation=self._shown(step.observation, name if verb == "click" else ""))

    def save(self) -> tuple[SavedVisit, Page | None]:
        """Return the present state."""
        return self.world.save(), self._page

    def load(self, state: tuple[SavedVisit, Page | None]) -> None:
        """Go back to a saved state."""
        visit, self._page = state
        self.world.load(visit)

    def contents(self, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yield the contents of the world behind it."""
        return self.world.contents(tasks)

    def subgoals(self) -> frozenset[str]:
        """Return what has been reached in the world behind it."""
        return self.world.subgoals()

    def expert(self, seed: int) -> Callable[[Observation], str]:
        """Return a shopper that reads no features, since they are cut here; it says `click[item 3]`."""
        shopper = Shopper(reads=0)

        def act(observation: Observation) -> str:
            page: Page = observation.info["page"]
            return aliases(page).get(command := shopper.act(observation), command)

        return act

    def _shown(self, observation: Observation, clicked: str) -> Observation:
        page: Page = observation.info["page"]
        before, self._page = self._page, page
        short = aliases(page)
        commands = tuple(short.get(command, command) for command in observation.admissible or ())
        text = self._text(page, clicked if before is not None and before.kind == page.kind == "item" else "")
        search = observation.templates and (Template("search[for ", wanted_phrases(page.instruction)[:_PHRASES], "]"),)
        return replace(observation, text=text, admissible=commands, templates=search)

    def _text(self, page: Page, chosen: str) -> str:
        if page.kind == "start":
            limit = price_limit(page.instruction)
            dear = f", price lower than {limit:.2f} dollars" if limit is not None else ""
            return f"Your task is to: shop for {', '.join(wanted_phrases(page.instruction))}{dear}"
        if page.kind == "results":
            items = (f"{self._label(item, page)} {n}: {self._line(item)}" for n, item in enumerate(page.items, start=1))
            return "\n".join((f"found {page.total}, page {page.number}", *items))
        if page.kind == "item":
            return "\n".join(self._item_lines(page, chosen))
        if page.kind == "sub":
            assert page.product is not None
            texts = {"description": (page.product.description,), "features": page.product.bullet_points}
            return "\n".join((page.sub, *(self._cut(text) for text in texts.get(page.sub, ()))))
        return "bought"

    def _item_lines(self, page: Page, chosen: str) -> list[str]:
        """Return what an item's page says; after a click on an option, that option and what else was asked for."""
        product = page.product
        assert product is not None
        numbers = option_numbers(page)
        asked = [v for v in dict.fromkeys(mentioned(page)) if v in numbers]
        left = [f"option {numbers[v]} {v}" for v in asked if v not in page.options.values()]
        asks = f"asked: {', '.join(left) or 'nothing'}"
        group = group_of(product, chosen) if chosen else None
        if group is not None:
            return [f"{group}: {chosen}", asks]
        lines = [f"{self._label(product, page)} {self._line(product)}", f"lacks {lacking(page, product)}", asks]
        for name, values in product.options.items():
            others = [f"option {numbers[v]} {v}" for v in values if v in numbers and v not in asked]
            more = ["..."] if len(others) > self._words else []
            if others:
                lines.append(f"{name}: {', '.join(others[: self._words] + more)}")
        return lines

    def _label(self, product: Product, page: Page) -> str:
        return "item" if affordable(product, page.instruction) else "dear"

    def _line(self, product: Product) -> str:
        return f"{self._cut(product.name)} {product.price_tag}"

    def _cut(self, text: str) -> str:
        return " ".join(text.lower().split()[: self._words])


class CompactDataShop(CompactShop):
    """The same on downloaded data, which it can name."""

    def fingerprint(self, split: str) -> str:
        """Return that of the world behind it."""
        return self.world.shop.fingerprint


def option_numbers(page: Page) -> dict[str, int]:
    """Return the number of each option that a command can name and that is no button, those "asked" for first."""
    product = page.product
    assert product is not None
    values = dict.fromkeys((*mentioned(page), *(v for group in product.options.values() for v in group)))
    named = [v for v in values if parse_action(f"click[{v}]") == ("click", v) and v not in ITEM_BUTTONS]
    return {value: number for number, value in enumerate(named, start=1)}


def aliases(page: Page) -> dict[str, str]:
    """Return for each command with an item's code or an option's value the one with its number."""
    if page.kind == "results":
        return {f"click[{item.asin.lower()}]": f"click[item {n}]" for n, item in enumerate(page.items, start=1)}
    if page.kind == "item":
        return {f"click[{value}]": f"click[option {n}]" for value, n in option_numbers(page).items()}
    return {}


def original_action(action: str, page: Page) -> str:
    """Return a command with an item's code or an option's value in place of its number; any other as it is."""
    return {alias: command for command, alias in aliases(page).items()}.get(action, action)
