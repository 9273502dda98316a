"""`envrl play ENV`: a person plays in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.cli.arguments import Parser, add_plugin, split_overrides, whole_number, world_settings
from envrl.config.plugins import load_plugins


def run(arguments: Sequence[str]) -> int:
    """Play one task of a world."""
    parser = Parser(
        "play",
        "Play a world in the terminal.",
        usage="ENV [--env.ENV.key value ...] [--split S] [--index N] [--data DIR] [--plugin FILE.py]",
        epilog="--env.ENV.key value is a setting of the world itself, as in a recipe (docs/recipes.md)",
    )
    parser.add_argument("env", metavar="ENV", help="the world, such as household or alfworld")
    parser.add_argument("--split", default="train", help="the split to take the task from (default: train)")
    parser.add_argument("--index", type=whole_number, default=0, metavar="N", help="which task of it (default: 0)")
    parser.add_argument("--data", metavar="DIR", help="the world's downloaded data")
    add_plugin(parser)
    overrides, rest = split_overrides(arguments)
    values = parser.parse(rest)
    load_plugins(values.plugin)

    from envrl.envs.play import play

    settings = world_settings(overrides, [values.env])[values.env]
    play(values.env, split=values.split, index=values.index, data=values.data, settings=settings)
    return 0
