"""The shop in few words, for small models: the same pages and rules, short texts, and numbers in place of item codes.

    search[words]             → found 50, page 1
                                item 1: rosmere easy clean table lamp $76.51
                                item 2: …
    click[item 1]             → rosmere easy clean table lamp $76.51
                                color: grey, khaki, pink
    click[khaki]              → color: khaki                (the original shows the same page again)
    click[buy now]            → bought

Everything else, rewards included, is the world behind it: a command is translated and carried out there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from envrl.envs.webshop.pages import Page, group_of
from envrl.envs.webshop.products import Product
from envrl.envs.webshop.shopper import Shopper
from envrl.envs.webshop.visit import parse_action
from envrl.envs.webshop.world import SavedVisit, WebShop
from envrl.types import Observation, Step, Task

_ITEM = re.compile(r"click\[item (\d+)\]")


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
        verb, name = parse_action(action)
        step = self.world.step(original_action(action, self._page))
        return replace(step, observation=self._shown(step.observation, name if verb == "click" else ""))

    def save(self) -> tuple[SavedVisit, Page | None]:
        """Return the present state."""
        return self.world.save(), self._page

    def load(self, state: tuple[SavedVisit, Page | None]) -> None:
        """Go back to a saved state."""
        visit, self._page = state
        self.world.load(visit)

    def subgoals(self) -> frozenset[str]:
        """Return what has been reached in the world behind it."""
        return self.world.subgoals()

    def expert(self, seed: int) -> Callable[[Observation], str]:
        """Return a shopper that reads no features, since they are cut here; it says `click[item 3]`."""
        shopper = Shopper(reads=0)

        def act(observation: Observation) -> str:
            return _alias(shopper.act(observation), observation.info["page"])

        return act

    def _shown(self, observation: Observation, clicked: str) -> Observation:
        page: Page = observation.info["page"]
        before, self._page = self._page, page
        commands = tuple(_alias(command, page) for command in observation.admissible or ())
        text = self._text(page, clicked if before is not None and before.kind == page.kind == "item" else "")
        return replace(observation, text=text, admissible=commands)

    def _text(self, page: Page, chosen: str) -> str:
        product = page.product
        if page.kind == "start":
            return f"Your task is to: {page.instruction}"
        if page.kind == "results":
            items = (f"item {n}: {self._line(item)}" for n, item in enumerate(page.items, start=1))
            return "\n".join((f"found {page.total}, page {page.number}", *items))
        assert product is not None
        if page.kind == "item":
            group = group_of(product, chosen) if chosen else None
            if group is not None:
                return f"{group}: {chosen}"
            groups = (f"{name}: {', '.join(values)}" for name, values in product.options.items())
            return "\n".join((self._line(product), *groups))
        if page.kind == "sub":
            texts = {"description": (product.description,), "features": product.bullet_points}.get(page.sub, ())
            return "\n".join((page.sub, *(self._cut(text) for text in texts)))
        return "bought"

    def _line(self, product: Product) -> str:
        return f"{self._cut(product.name)} {product.price_tag}"

    def _cut(self, text: str) -> str:
        return " ".join(text.lower().split()[: self._words])


class CompactDataShop(CompactShop):
    """The same on downloaded data, which it can name."""

    def fingerprint(self, split: str) -> str:
        """Return that of the world behind it."""
        return self.world.shop.fingerprint


def original_action(action: str, page: Page) -> str:
    """Return a command with an item's code in place of its number; any other command as it is."""
    found = _ITEM.fullmatch(action)
    if found and page.kind == "results" and 1 <= int(found[1]) <= len(page.items):
        return f"click[{page.items[int(found[1]) - 1].asin.lower()}]"
    return action


def _alias(command: str, page: Page) -> str:
    """Return a command with an item's number on the page in place of its code."""
    codes = [f"click[{item.asin.lower()}]" for item in page.items]
    return f"click[item {codes.index(command) + 1}]" if command in codes else command
