"""What the shop shows: pages as records, their text and what can be clicked on them, as in the original's text mode.

Source: princeton-nlp/WebShop, its templates and `web_agent_site/envs/web_agent_text_env.py`; verified against
recordings of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from envrl.envs.webshop.products import Product

SEPARATOR = " [SEP] "
PAGE_SIZE = 10
BACK, PREVIOUS, NEXT, BUY = "back to search", "< prev", "next >", "buy now"
SUB_PAGES = ("description", "features", "reviews")
ITEM_BUTTONS = (BACK, PREVIOUS, *SUB_PAGES, BUY)
_BLANK = frozenset(" \t\n\f\r")
_DONE = (
    (
        "Thank you for shopping with us!",
        "Your code:",
        "None",
        "(Paste it in your MTurk interface.)",
        "Purchased",
        "asin",
    ),
    ("attrs", "None", "category", "None", "query", "None", "product category", "None"),
    ("Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category", "query"),
    ("Goal", "None", "Reward", "Your score (min 0.0, max 1.0)"),
    ("Reward Details", "None"),
)
_HTML_SAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "'": "\\u0027"})


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the shop, with what is on it; fields that its kind does not have are empty."""

    kind: Literal["start", "results", "item", "sub", "done"]
    instruction: str
    number: int = 0
    total: int = 0
    items: tuple[Product, ...] = ()
    product: Product | None = None
    sub: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    reward: float = 0.0


def page_text(page: Page) -> str:
    """Return a page's visible text, its parts joined by " [SEP] "."""
    return SEPARATOR.join(_visible(_parts(page)))


def clickables(page: Page) -> tuple[str, ...]:
    """Return what can be clicked on a page, lower case, in the original's order."""
    if page.kind == "start":
        return ("search",)
    if page.kind == "results":
        previous = (PREVIOUS,) if page.number > 1 else ()
        return tuple(dict.fromkeys((BACK, *previous, NEXT, *(item.asin.lower() for item in page.items))))
    if page.kind == "item" and page.product is not None:
        values = (value for group in page.product.options.values() for value in group)
        return tuple(dict.fromkeys((*ITEM_BUTTONS, *values)))
    return (BACK, PREVIOUS) if page.kind == "sub" else ()


def group_of(product: Product, value: str) -> str | None:
    """Return the option group that a clicked value sets: the last that has it."""
    return next((name for name in reversed(product.options) if value in product.options[name]), None)


def _parts(page: Page) -> Iterable[str]:
    product = page.product
    if page.kind == "start":
        return ("WebShop", "Instruction:", page.instruction, "Search")
    if page.kind == "done" and product is not None:
        bought = json.dumps(page.options, sort_keys=True).translate(_HTML_SAFE)
        thanks, details, target, score, end = _DONE
        return (*thanks, product.asin, "options", bought, *details, *target, *score, str(page.reward), *end)
    head = ("Instruction:", page.instruction, "Back to Search")
    if page.kind == "results":
        turn = ("< Prev", "Next >") if page.number > 1 else ("Next >",)
        listed = (part for item in page.items for part in (item.asin, item.name, item.price_tag))
        return (*head, f"Page {page.number} (Total results: {page.total})", *turn, *listed)
    assert product is not None
    if page.kind == "sub":
        return (*head, "< Prev", *_sub_page(product, page.sub))
    groups = (part for name, values in product.options.items() for part in (name, *values))
    price = f"Price: {product.price_tag}"
    return (
        *head,
        "< Prev",
        *groups,
        product.name,
        price,
        "Rating: N.A.",
        "Description",
        "Features",
        "Reviews",
        "Buy Now",
    )


def _sub_page(product: Product, name: str) -> tuple[str, ...]:
    if name == "features":  # the template puts a blank before each, so an empty one is seen, too
        return tuple(f" {bullet}" for bullet in product.bullet_points)
    return (product.description,) if name == "description" else ()


def _visible(parts: Iterable[str]) -> Iterable[str]:
    """Yield the stripped parts as an HTML parser finds them: empty ones, and blank ones with a line break, are gone."""
    for part in parts:
        if part and not ("\n" in part and _BLANK.issuperset(part)):
            yield part.strip()
