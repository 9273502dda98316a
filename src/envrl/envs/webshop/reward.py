"""The reward of a purchase and its parts.

    reward = r_type · (attributes found + options found + [price ≤ limit]) / (attributes + options + 1)

Source: princeton-nlp/WebShop, `web_agent_site/engine/goal.py`; verified against recordings of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envrl.envs.webshop.nouns import title_nouns
from envrl.envs.webshop.similarity import similar
from envrl.errors import UserError

_COLOR_LIST = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo "
    "caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream "
    "crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather "
    "indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha "
    "multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal "
    "rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise "
    "violet walnut wheat white wine yellow"
)
COLORS = tuple(_COLOR_LIST.split())
"""The colour words to which option values are cut, in this order (the original's list)."""

Scores = dict[str, Any]


def score(
    product: Mapping[str, Any],
    goal: Mapping[str, Any],
    options: Mapping[str, str],
    price: float,
    nouns: Mapping[str, Sequence[str]] | None = None,
    fixes: bool = False,
) -> Scores:
    """Return the reward of buying a product with these options at this price (dollars), and its parts.

    `product` has asin, name, query, product_category, attributes, bullet_points and description, `goal` is as
    `make_goals` returns it; `nouns` = {"product": […], "goal": […]} are the nouns of both titles, by default
    `title_nouns`. `fixes` mends the original's plain bugs (docs/worlds/webshop.md). Raises `UserError` for a goal
    without attributes or with a price limit that is not above 0, where the original stops.
    """
    wanted, attributes = goal["goal_options"], list(goal["attributes"])
    if not attributes or not goal["price_upper"] > 0:
        raise UserError(f"the goal for {goal.get('asin', 'a product')} has no attributes or no price limit above 0")
    of_type = _type_scores(product, goal, nouns or {}, fixes)
    attribute_hits = sum(_has_attribute(product, attribute) for attribute in attributes)
    option_hits = _option_hits(wanted, options, fixes)
    affordable = price <= goal["price_upper"]
    parts = len(attributes) + len(wanted) + 1
    scores: Scores = {
        "reward": of_type["r_type"] * ((attribute_hits + option_hits + affordable) / parts),
        "r_type": of_type.pop("r_type"),
        "r_att": attribute_hits / len(attributes),
        "w_att": len(attributes) / parts,
        **of_type,
    }
    if wanted:
        scores |= {"r_option": option_hits / len(wanted), "w_option": len(wanted) / parts}
    return scores | {"r_price": affordable, "w_price": 1 / parts}


def _type_scores(
    product: Mapping[str, Any], goal: Mapping[str, Any], nouns: Mapping[str, Sequence[str]], fixes: bool
) -> Scores:
    bought = nouns["product"] if "product" in nouns else title_nouns(product["name"])
    desired = nouns["goal"] if "goal" in nouns else title_nouns(goal["name"])
    query_match = product["query"] == goal["query"]
    category_match = len(_levels(product) & _levels(goal)) >= 2
    counted = len(set(desired)) if fixes else len(desired)
    title = len(set(bought) & set(desired)) / counted if counted else 0.2
    r_type = 1.0 if query_match or category_match or title > 0.2 else 0.5
    if title < 0.1:
        r_type = 0.1
    if title == 0.0:
        r_type = 0.0
    return {"r_type": r_type, "query_match": query_match, "category_match": category_match, "title_score": title}


def _levels(record: Mapping[str, Any]) -> set[str]:
    return {level.strip() for level in record["product_category"].split("›")}


def _has_attribute(product: Mapping[str, Any], wanted: str) -> bool:
    if any(similar(attribute, wanted) for attribute in product["attributes"]):
        return True
    texts = (product["name"], " ".join(product["bullet_points"]), product["description"])
    return any(wanted in text.lower() for text in texts)


def _option_hits(wanted: Sequence[str] | Mapping[str, str], options: Mapping[str, str], fixes: bool) -> int:
    """Return how many of the wanted options are like any chosen value, whatever its group.

    Of a goal that names its groups the original compares the text "(name, value)" with the chosen value; `fixes`
    compares value with value, whole, of the same group where it is named.
    """
    if fixes and isinstance(wanted, Mapping):
        return sum(name in options and similar(options[name], value) for name, value in wanted.items())
    if fixes:
        return sum(any(similar(value, goal) for value in options.values()) for goal in wanted)
    named = isinstance(wanted, Mapping)
    goals = [_color_of_pair(pair) for pair in wanted.items()] if named else [_color(value) for value in wanted]
    chosen = [_color(value) for value in options.values()]
    return sum(any(similar(value, goal) for value in chosen) for goal in goals)


def _color(text: str) -> str:
    """Return the first colour of the list that the text contains, else the text: "covered" becomes "red"."""
    return next((color for color in COLORS if color in text), text)


def _color_of_pair(pair: tuple[str, str]) -> str:
    """Return the first colour that *is* the name or the value, else the pair as Python writes it."""
    return next((color for color in COLORS if color in pair), str(pair))
