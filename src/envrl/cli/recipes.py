"""`envrl recipes [NAME]`: what ships, or a recipe with every key."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.cli.arguments import Parser, add_plugin
from envrl.config.load import dump_config, load_recipe
from envrl.config.recipes_index import recipe_names, recipe_summary


def run(arguments: Sequence[str]) -> int:
    """List the recipes that ship with what each is, or print the one named (or a file) with every key resolved."""
    parser = Parser("recipes", "List the recipes that ship, or print one with every key.")
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
    return 0
