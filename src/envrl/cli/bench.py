"""`envrl bench`: what worlds (`env NAME`, `env all`), WebShop's search, and an update's two halves cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from envrl.cli.arguments import Parser, add_plugin, check_output, number, split_overrides, whole_number
from envrl.config.keys import KEYS
from envrl.config.load import load_recipe
from envrl.config.plugins import load_plugins
from envrl.config.schema import Config
from envrl.errors import UserError, suggest


def run(arguments: Sequence[str]) -> int:
    """Measure a world's steps a second, and the time to load and to reset a task; status 1 where one of all fails."""
    if arguments[:1] in (["rollout"], ["train"]):
        return {"rollout": _rollout, "train": _train}[arguments[0]](arguments[1:])
    parser = Parser("bench", "Measure throughput; prints JSON for one world, a table for all.")
    parser.add_argument(
        "what",
        metavar="env|search|rollout|train",
        help="a world's throughput, WebShop's search, a recipe's play or update ('envrl bench train --help')",
    )
    parser.add_argument("name", metavar="NAME", help="the world, such as household or alfworld; all: every one")
    parser.add_argument("--data", metavar="DIR", help="the world's downloaded data")
    parser.add_argument("--seconds", type=number, default=2.0, metavar="S", help="how long to play (default: 2)")
    parser.add_argument("--products", type=whole_number, default=0, metavar="N", help="search: products (default: all)")
    parser.add_argument("--workers", type=whole_number, default=8, metavar="N", help="search: processes side by side")
    parser.add_argument("--json", action="store_true", help="print JSON for all worlds, too")
    add_plugin(parser)
    values = parser.parse(arguments)
    load_plugins(values.plugin)
    if values.what not in ("env", "search"):
        raise UserError(f"unknown benchmark '{values.what}'{suggest(values.what, ['env', 'search'])}")
    if values.what == "search":
        return _search(values.name, values.products, values.data, values.workers)
    if values.name == "all":
        return _all(values.data, values.seconds, values.json)

    from envrl.envs.bench import bench_env

    print(json.dumps(bench_env(values.name, data=values.data, seconds=values.seconds), indent=1))
    return 0


def _rollout(arguments: Sequence[str]) -> int:
    parser = Parser(
        "bench rollout",
        "Play the episodes of one update; prints a table.",
        usage="RECIPE [--section.key value ...] [--shape NAME] [--json FILE] [--without-generate]",
        epilog="--section.key value sets a key of the recipe (docs/recipes.md has all of them)",
    )
    _add_recipe(parser)
    parser.add_argument("--without-generate", action="store_true", help="leave out the comparison with `generate`")
    values, config = _read_recipe(parser, arguments)

    from envrl.bench.rollout import bench_rollout, table

    figures = bench_rollout(config, values.shape, generate=not values.without_generate)
    if values.json is not None:
        values.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))
    return 0


def _train(arguments: Sequence[str]) -> int:
    parser = Parser(
        "bench train",
        "Play the episodes of one update and time what is learned from them; prints a table.",
        usage="RECIPE [--section.key value ...] [--shape NAME] [--repeats N] [--update-alone] [--json FILE]",
        epilog="--section.key value sets a key of the recipe (docs/recipes.md has all of them)",
    )
    _add_recipe(parser)
    parser.add_argument("--repeats", type=whole_number, default=5, metavar="N", help="how often (default: 5)")
    parser.add_argument("--update-alone", action="store_true", help="leave out the comparison of whole updates")
    values, config = _read_recipe(parser, arguments)
    if values.repeats < 1:
        raise UserError("--repeats must be at least 1")

    from envrl.bench.train import bench_train, table

    figures = bench_train(config, values.shape, repeats=values.repeats, compare=not values.update_alone)
    if values.json is not None:
        values.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))
    return 0


def _add_recipe(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of one that ships ('envrl recipes')")
    add_plugin(parser)
    parser.add_argument("--shape", default="", metavar="NAME", help="with a random model of a shape like qwen2.5-1.5b")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there, too")


def _read_recipe(parser: Parser, arguments: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    overrides, rest = split_overrides(arguments, KEYS)
    values = parser.parse(rest, also=[f"--{key}" for key in KEYS])
    config = load_recipe(values.recipe, overrides, values.plugin)
    if values.json is not None:
        check_output(values.json, "--json", ".json")
    return values, config


def _search(name: str, products: int, data: str | None, workers: int) -> int:
    if name != "webshop":
        raise UserError(f"only the world 'webshop' has a search to measure, not '{name}'")
    if products < 0 or workers < 1:
        raise UserError("--products must be at least 0, and --workers at least 1")
    from envrl.envs.webshop.bench import bench_search

    print(json.dumps(bench_search(products, data or "", workers), indent=1))
    return 0


def _all(data: str | None, seconds: float, as_json: bool) -> int:
    if data:
        raise UserError("--data is of one world; name that world, or set its environment variable for 'bench env all'")
    from envrl.envs.bench_all import bench_all, table

    rows = bench_all(seconds)
    print(json.dumps(rows, indent=1) if as_json else table(rows))
    return 1 if any("failed" in row for row in rows) else 0
