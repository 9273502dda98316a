"""`envrl play ENV`: a person plays in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.cli.arguments import Parser, add_plugin, whole_number
from envrl.config.plugins import load_plugins


def run(arguments: Sequence[str]) -> int:
    """Play one task of a world."""
    parser = Parser("play", "Play a world in the terminal.")
    parser.add_argument("env", metavar="ENV", help="the world, such as household or alfworld")
    parser.add_argument("--split", default="train", help="the split to take the task from (default: train)")
    parser.add_argument("--index", type=whole_number, default=0, metavar="N", help="which task of it (default: 0)")
    parser.add_argument("--data", metavar="DIR", help="the world's downloaded data")
    add_plugin(parser)
    values = parser.parse(arguments)
    load_plugins(values.plugin)

    from envrl.envs.play import play

    play(values.env, split=values.split, index=values.index, data=values.data)
    return 0
