"""The world `webshop` by its settings: downloaded or generated products, the original's texts or few words."""

from __future__ import annotations

import os
from typing import Literal

from envrl.envs.protocol import TextEnv
from envrl.envs.webshop.catalogue import PRODUCTS as GENERATED
from envrl.envs.webshop.compact import CompactDataShop, CompactShop
from envrl.envs.webshop.shop import Shop
from envrl.envs.webshop.world import DataShop, WebShop
from envrl.errors import UserError
from envrl.ranges import Count


def webshop(
    data: str = "",
    *,
    products: Count = 0,  # only the first of the catalogue; 0: all (generated: 10,000)
    goals: Literal["", "human", "synthetic"] = "",  # empty: synthetic on the 1,000-product catalogue, else human
    seed: Count = 0,  # draws prices, their limits and the generated catalogue
    nouns: str = "",  # a JSON file of title nouns by asin, or spacy; empty: guessed
    fixes: bool = False,  # the original's plain bugs are mended (docs/worlds/webshop.md)
    compact: Count = 0,  # texts of at most this many words, numbers to click; 0: the original's texts
) -> TextEnv:
    """Return WebShop on the original's files in `data` (empty: $WEBSHOP_DATA), or on a generated catalogue without any.

    `products` takes only the first of the catalogue (0: all; generated: 10,000), `goals` is human or synthetic (empty:
    synthetic on the 1,000-product catalogue, else human), `seed` draws prices, their limits and the generated
    catalogue, `nouns` says where title nouns come from (`noun_source`). `compact` shows texts of at most that many
    words, with numbers to click and reading aids (`CompactShop`). Nothing is read until needed.
    """
    if goals not in ("", "human", "synthetic"):
        raise UserError(f"the goals of the world 'webshop' are human or synthetic, not '{goals}'")
    for name, count in (("products", products), ("compact", compact)):
        if count < 0:
            raise UserError(f"{name} of the world 'webshop' must be at least 0, not {count}")

    folder = data or os.environ.get("WEBSHOP_DATA", "")

    def shop() -> Shop:
        from envrl.envs.webshop.store import generated_shop, stored_shop

        if folder:
            return stored_shop(folder, products, seed, goals)
        return generated_shop(products or GENERATED, seed, goals or "human")

    world = (DataShop if folder else WebShop)(shop=shop, nouns=nouns, fixes=fixes)
    if not compact:
        return world
    return (CompactDataShop if folder else CompactShop)(world, compact)
