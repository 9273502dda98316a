"""What shoppers are asked to find: goals from human instructions, or one for each combination of a product's options.

Source: princeton-nlp/WebShop, `web_agent_site/engine/goal.py`; verified against recordings of it.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from envrl.envs.webshop.products import Product, draw_price, read_products

PRICE_STEPS = tuple(10.0 * step for step in range(1, 100))
NO_LIMIT = 1000000
SHUFFLE_SEED = 233


class Goal(TypedDict):
    """A goal as the original records it; human ones list the option values, synthetic ones name their groups."""

    asin: str
    category: str
    query: str
    name: str
    product_category: str
    instruction_text: str
    attributes: list[str]
    price_upper: float
    goal_options: list[str] | dict[str, str]
    weight: float


def make_goals(
    products: Sequence[Mapping[str, Any]],
    attributes: Mapping[str, Mapping[str, Any]],
    human: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    seed_before_load: int = 0,
    shuffle_seed: int = SHUFFLE_SEED,
) -> list[Goal]:
    """Return the goals of a raw catalogue in the original's order; `human` gives human goals, else they are synthetic.

    `seed_before_load` seeds what the original draws unseeded (prices within ranges, then price limits),
    `shuffle_seed` the order.
    """
    generator = random.Random(seed_before_load)
    loaded = list(read_products(products, attributes))
    prices = {product.asin: draw_price(product, generator) for product in loaded}
    return draw_goals(loaded, prices, human, generator, shuffle_seed)


def draw_goals(
    products: Iterable[Product],
    prices: Mapping[str, float],
    human: Mapping[str, Sequence[Mapping[str, Any]]] | None,
    generator: random.Random,
    shuffle_seed: int = SHUFFLE_SEED,
) -> list[Goal]:
    """Return the goals of loaded products, shuffled; price limits come from the generator in catalogue order."""
    goals: list[Goal] = []
    for product in products:
        if human is None:
            goals += _synthetic(product, prices[product.asin], generator)
        else:
            goals += _human(product, human.get(product.asin, ()), prices[product.asin], generator)
    if human is None:
        _weigh(goals)
    random.Random(shuffle_seed).shuffle(goals)
    return goals


def _human(
    product: Product, instructions: Sequence[Mapping[str, Any]], price: float, generator: random.Random
) -> list[Goal]:
    goals: list[Goal] = []
    for entry in instructions:
        if not entry["instruction_attributes"]:
            continue
        upper, text = _price_limit(price, generator)
        attributes = list(entry["instruction_attributes"])
        goals.append(
            _goal(
                product, entry["instruction"].strip(".") + text, attributes, upper, list(entry["instruction_options"])
            )
        )
    return goals


def _synthetic(product: Product, price: float, generator: random.Random) -> list[Goal]:
    if product.instruction is None:
        return []
    upper, text = _price_limit(price, generator)
    names = sorted(product.options)
    goals: list[Goal] = []
    for values in itertools.product(*(product.options[name] for name in names)):
        chosen = dict(zip(names, values, strict=True))
        wanted = ", and ".join(f"{name}: {value}" for name, value in chosen.items())
        instruction = f"{product.instruction}{' with ' if wanted else ''}{wanted}{text}"
        goals.append(_goal(product, instruction, list(product.instruction_attributes), upper, chosen))
    return goals


def _goal(
    product: Product, instruction: str, attributes: list[str], upper: float, options: list[str] | dict[str, str]
) -> Goal:
    return {
        "asin": product.asin,
        "category": product.category,
        "query": product.query,
        "name": product.name,
        "product_category": product.product_category,
        "instruction_text": instruction,
        "attributes": attributes,
        "price_upper": upper,
        "goal_options": options,
        "weight": 1,
    }


def _price_limit(price: float, generator: random.Random) -> tuple[float, str]:
    """Return a limit above a price, in dollars, and how the instruction says it."""
    above = [step for step in PRICE_STEPS if step > price][:4]
    if len(above) < 2:
        return NO_LIMIT, ""
    upper = max(generator.sample(above, 2))
    return upper, f", and price lower than {upper:.2f} dollars"


def _weigh(goals: list[Goal]) -> None:
    """Set each goal's weight: the mean, over its attributes, of 1 / (goals that ask for the attribute)."""
    counts = Counter(attribute for goal in goals for attribute in goal["attributes"])
    for goal in goals:
        goal["weight"] = sum(1.0 / counts[a] for a in goal["attributes"]) / len(goal["attributes"])
