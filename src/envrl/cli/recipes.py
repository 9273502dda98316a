"""`envrl recipes [NAME]`: what ships, recipes and methods, or a recipe with every key."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from envrl.cli.arguments import Parser, add_plugin
from envrl.config.load import dump_config, load_recipe
from envrl.config.plugins import load_plugins
from envrl.config.recipes_index import recipe_names, recipe_summary
from envrl.registry import KINDS
from envrl.registry import names as registered


def run(arguments: Sequence[str]) -> int:
    """List the recipes that ship and what recipes choose by name, or print the one named, or a file, with every key."""
    parser = Parser("recipes", "List recipes and methods by kind, or print a recipe with every key.")
    parser.add_argument("recipe", metavar="NAME", nargs="?", help="a recipe that ships, or a TOML file")
    add_plugin(parser)
    values = parser.parse(arguments)
    recipe = values.recipe
    if recipe is not None:
        print(dump_config(load_recipe(recipe, plugins=values.plugin)), end="")
        return 0
    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {recipe_summary(name)}")
    load_plugins(values.plugin)
    print("\nWhat a recipe chooses by name, and the key for it:\n")
    chosen = {kind.key or f"[{kind.tables[0]}.NAME]": registered(name) for name, kind in KINDS.items()}
    width = max(map(len, chosen))
    for key, having in chosen.items():
        lines = wrap(", ".join(having), 90, break_on_hyphens=False)
        print("\n".join(f"{key if not place else '':<{width}}  {line}" for place, line in enumerate(lines)))
    return 0
