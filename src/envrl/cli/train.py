"""`envrl train RECIPE [--section.key value …] [--run DIR] [--resume]`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from envrl.cli.arguments import Parser, split_overrides
from envrl.config.keys import KEYS
from envrl.config.load import load_recipe
from envrl.errors import UserError


def run(arguments: Sequence[str]) -> int:
    """Train by a recipe into a run directory, or go on with the run that is there."""
    parser = Parser(
        "train",
        "Train an agent by a recipe.",
        usage="RECIPE [--section.key value ...] [--run DIR] [--resume]",
        epilog="--section.key value sets a key of the recipe (docs/recipes.md has all of them); a list is written a,b",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of one that ships ('envrl recipes')")
    parser.add_argument("--run", metavar="DIR", help="the run's directory (default: runs/ and the recipe's name)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    overrides, rest = split_overrides(arguments, KEYS)
    values = parser.parse(rest, also=[f"--{key}" for key in KEYS])
    config = load_recipe(values.recipe, overrides)
    directory = Path("runs", Path(values.recipe).stem) if values.run is None else _directory(values.run)

    from envrl.eval.split import env_maker
    from envrl.trainer.inputs import check_directory, check_names, pinned_model

    check_directory(directory, values.resume)  # what is wrong is said before torch is loaded, which takes seconds
    check_names(config, env_maker(config))
    if not values.resume:
        config = pinned_model(config)

    from envrl.trainer.loop import train

    train(config, directory, values.resume)
    return 0


def _directory(text: str) -> Path:
    if not text:
        raise UserError("--run needs the name of a directory, and is empty")
    return Path(text)
