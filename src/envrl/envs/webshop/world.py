"""The shop as a world: one goal a task, a search engine, pages, and a purchase that is scored at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, overload

from envrl.envs.webshop.goals import Goal
from envrl.envs.webshop.nouns import Nouns, noun_source
from envrl.envs.webshop.products import Product, read_products, score_record
from envrl.envs.webshop.reward import score
from envrl.envs.webshop.shop import GivenShop, Shop
from envrl.envs.webshop.visit import State, Visit, parse_action
from envrl.errors import UserError
from envrl.types import Observation, Step, Task

SPLITS = {"test": slice(0, 500), "valid": slice(500, 1500), "train": slice(1500, None), "all": slice(0, None)}


class SavedVisit(NamedTuple):
    """A shop visit's state as plain values, for any world over the same shop."""

    task: Task
    seed: int
    state: State


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

        `prices` (dollars, by asin) stand in for drawn ones; `nouns` is as for `noun_source`; `shop` opens another shop
        in place of all this.
        """

        def given() -> Shop:
            return GivenShop(read_products(products, attributes or {}), goals, search, prices or {})

        self._open = shop or given
        self._given_nouns = nouns
        self._fixes = fixes
        self._visit: Visit | None = None

    @cached_property
    def shop(self) -> Shop:
        """The shop, read or generated when first needed."""
        return self._open()

    @cached_property
    def _nouns(self) -> Nouns:
        return noun_source(self._given_nouns)

    def tasks(self, split: str) -> Sequence[Task]:
        """Return a split's goals in their order: test 0–499, valid 500–1499, train the rest, or all."""
        if split not in SPLITS:
            raise UserError(f"the world 'webshop' has no split '{split}'; choose from {', '.join(SPLITS)}")
        return GoalTasks(self.shop, split, range(len(self.shop.goals))[SPLITS[split]])

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start at the search bar with a task's goal; `seed` decides what the search `<r>` returns."""
        self._visit = Visit(self.shop, task, self._goal(task), seed)
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
        self._visit = Visit(self.shop, state.task, self._goal(state.task), state.seed)
        self._visit.go(state.state)

    def goal(self, task: Task) -> Goal:
        """Return what a task asks for, which the shopper does not see."""
        return self._goal(task)

    def contents(self, tasks: Sequence[Task]) -> Iterator[Any]:
        """Yield each task's goal, then the catalogue, which every search goes through: products with their prices."""
        yield from map(self._goal, tasks)
        for product in self.shop.products:
            yield product, self.shop.price(product.asin)

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

    def _score(self, visit: Visit, product: Product) -> dict[str, Any]:
        goal = visit.goal
        nouns = {
            "product": self._nouns(product.asin, product.name),
            "goal": self._nouns(goal["asin"], goal["name"]),
        }
        return score(
            score_record(product),
            goal,
            dict(visit.state.options),
            self.shop.price(product.asin),
            nouns,
            self._fixes,
        )


class DataShop(WebShop):
    """WebShop on downloaded data, which it can name."""

    def fingerprint(self, split: str) -> str:
        """Return a SHA-256 over the files that all splits are made of, and how goals are drawn from them."""
        return self.shop.fingerprint


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
        return self._task(self._numbers[index])

    def __contains__(self, task: object) -> bool:
        """True for a task of the split; none is made but the one of that number."""
        number = task.id.rpartition("-")[2] if isinstance(task, Task) else ""
        return number.isdecimal() and int(number) in self._numbers and self._task(int(number)) == task

    def _task(self, number: int) -> Task:
        return Task(f"{self._shop.name}-{number}", self._split, kind=str(self._shop.goals[number]["category"]))
