"""`envrl train RECIPE [--section.key value …] [--run DIR] [--resume] [--plugin FILE.py] [--quick] [--processes N]
[--ray ADDRESS|local [--ray-patience SECONDS]]`"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from envrl import ranks
from envrl.cli.arguments import Parser, add_plugin, number, split_overrides, whole_number
from envrl.cli.cluster import check_ray
from envrl.cli.launch import check_count, end_with_launcher, launch, was_launched
from envrl.cli.ray_launch import WAIT, launch_on_ray
from envrl.config.check import check_processes, check_together
from envrl.config.keys import KEYS, describe, kind_of
from envrl.config.load import config_differences, flat_values, load_recipe, override
from envrl.config.quick import quick
from envrl.config.schema import Config
from envrl.config.values import show
from envrl.errors import UserError
from envrl.registry import find


def run(arguments: Sequence[str]) -> int:
    """Train by a recipe into a run directory, or go on with the run that is there."""
    parser = Parser(
        "train",
        "Train an agent by a recipe.",
        usage="RECIPE [--section.key value ...] [--run DIR] [--resume] [--plugin FILE.py] [--quick] [--processes N] "
        "[--ray ADDRESS|local]",
        epilog="--section.key value sets a key of the recipe (docs/recipes.md has all of them); a list is written a,b. "
        "With a RECIPE, --help has the settings of what it chooses by name, those of a --plugin among them.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of one that ships ('envrl recipes')")
    parser.add_argument("--run", metavar="DIR", help="the run's directory (default: runs/ and the recipe's name)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    parser.add_argument("--quick", action="store_true", help="a minute's run that shows that everything works")
    parser.add_argument(
        "--processes", metavar="N", type=whole_number, help="train in N processes of this machine (docs/scale.md)"
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS|local",
        help="give the processes to a Ray cluster, and go on by itself where a node is lost (docs/scale.md)",
    )
    parser.add_argument(
        "--ray-patience", metavar="SECONDS", type=number, help=f"how long to wait for lost nodes (default: {WAIT:g})"
    )
    add_plugin(parser)
    overrides, rest = split_overrides(arguments, KEYS.keys() - {"quick", "plugins"})
    if {"-h", "--help"} & {*rest}:
        return _help(parser, overrides, [argument for argument in rest if argument not in ("-h", "--help")])
    values = parser.parse(rest, also=[f"--{key}" for key in KEYS])
    several = values.processes is not None or values.ray is not None
    if values.processes is not None:
        check_count(values.processes)
    if values.ray_patience is not None and values.ray is None:
        raise UserError("--ray-patience is how long --ray waits: it does nothing without it")
    if several and "train.engine" not in dict(overrides):
        overrides = [*overrides, ("train.engine", "sharded")]
    name = Path(values.recipe).stem + "-quick" * values.quick
    directory = Path("runs", name) if values.run is None else _directory(values.run)
    if values.resume:
        from envrl.trainer.inputs import check_directory

        check_directory(directory, resume=True)  # before the recipe: it may be that of a run of an older version
    config = load_recipe(values.recipe, overrides, values.plugin)
    check_processes(config, values.processes or ranks.expected())
    if values.ray is not None:
        check_ray(config)
    if values.quick:
        full, config = config, _lowered(config, overrides)
        if ranks.is_first() and not was_launched():
            print(_words(full, config), file=sys.stderr, flush=True)

    from envrl.build import env_maker
    from envrl.trainer.inputs import check_directory, check_names, pinned_model
    from envrl.trainer.replaying import Replaying

    check_directory(directory, values.resume)  # what is wrong is said before torch is loaded, which takes seconds
    check_names(config, env_maker(config))
    if not values.resume:
        config = pinned_model(config)
        Replaying(config).begin()

    if values.ray is not None:
        patience = WAIT if values.ray_patience is None else values.ray_patience
        return launch_on_ray(_of_one(arguments), directory, config, values.ray, values.processes, patience)
    if values.processes is not None:
        return launch(_of_one(arguments), values.processes, config.train.micro_batch_tokens)
    end_with_launcher()

    from envrl.trainer.loop import train

    train(config, directory, values.resume)
    return 0


def _help(parser: Parser, overrides: Sequence[tuple[str, str]], rest: Sequence[str]) -> int:
    """Print the command's help and, for a recipe, the settings of what it chooses: value, type, range and meaning."""
    try:
        values = parser.parse(rest)
    except UserError:  # no recipe, or options that the help says
        parser.print_help()
        return 0
    config = load_recipe(values.recipe, overrides, values.plugin)
    parser.print_help()
    print(f"\nsettings of what {values.recipe} chooses:")
    for name, value in flat_values(config).items():
        table, _, last = name.rpartition(".")
        above, _, owner = table.rpartition(".")
        if name not in KEYS and (own := find(kind_of(above, owner), owner).settings.get(last)):
            print(f"  --{name} {show(value)}\n      {describe(own.annotation)}{own.meaning and f': {own.meaning}'}")
    return 0


def _of_one(arguments: Sequence[str]) -> list[str]:
    """Return the command line that each of several processes has."""
    options = ("--processes", "--ray", "--ray-patience")
    left: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument in options:
            next(remaining, None)
        elif argument.partition("=")[0] not in options:
            left.append(argument)
    engine = any(argument.partition("=")[0] == "--train.engine" for argument in left)
    return left if engine else [*left, "--train.engine", "sharded"]


def _lowered(config: Config, overrides: Sequence[tuple[str, str]]) -> Config:
    """Return the quick configuration of one, with what the command line sets left alone."""
    lowered = override(quick(config), overrides)
    check_together(lowered)
    return lowered


def _words(full: Config, config: Config) -> str:
    before, after = flat_values(full), flat_values(config)
    changed = [name for name in config_differences(full, config) if name != "quick"]
    changes = [f"{name} {before[name]} -> {after[name]}" for name in changed]
    return f"quick run, its figures mean nothing: {', '.join(changes)}"


def _directory(text: str) -> Path:
    if not text:
        raise UserError("--run needs the name of a directory, and is empty")
    return Path(text)
