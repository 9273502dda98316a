"""`envrl eval RUN|CHECKPOINT|MODEL|random|walkthrough|expert`: whole splits, with intervals.

With `--base-url` MODEL is a name that an OpenAI-compatible endpoint knows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from envrl.cli.arguments import Parser, add_plugin, check_output, names, number, split_overrides, whole_number
from envrl.cli.asking import (
    PROMPTING,
    add_chat,
    add_endpoint,
    check_with_endpoint,
    check_without_endpoint,
    given,
    print_so_far,
)
from envrl.cli.words import evaluation_lines
from envrl.config.keys import KEYS
from envrl.config.plugins import load_plugins
from envrl.errors import UserError

_MEASURED = ("free", "probe")
"""The options that only a model whose weights are here has."""


def run(arguments: Sequence[str]) -> int:
    """Evaluate an agent, print its success rates, and write all measurements where `--json` says."""
    settings, rest = split_overrides(arguments)
    values = _parser().parse(rest, also=[f"--{key}" for key in KEYS if key.startswith("env.")])
    load_plugins(values.plugin)
    if values.json is not None:
        check_output(values.json, "--json")

    if values.episodes_to is not None:
        check_output(values.episodes_to, "--episodes-to")

    records = _evaluate(values, settings) if values.base_url is None else _evaluate_endpoint(values, settings)
    if values.json is not None:
        from envrl.files import write_json

        write_json(values.json, records)
    print("\n".join(line for record in records for line in evaluation_lines(record)))
    return 0


def _evaluate(values: argparse.Namespace, settings: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    check_without_endpoint(values)
    from envrl.eval.evaluate import evaluate

    return evaluate(
        values.target,
        temperature=values.temperature,
        actions=values.actions,
        settings=settings,
        memory=not values.no_memory,
        **given(values, (*PROMPTING, *_MEASURED)),
        **_played(values),
    )


def _evaluate_endpoint(values: argparse.Namespace, settings: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    check_with_endpoint(values.actions)
    for name in _MEASURED:
        if getattr(values, name) is not None:
            raise UserError(f"--{name} is measured of a model whose weights are here, not of an endpoint; leave it out")

    from envrl.eval.client import Endpoint
    from envrl.eval.endpoint import evaluate_endpoint

    fields = ("temperature", "max_tokens", "key_variable", "concurrency", "timeout", "retries", "template_arguments")
    endpoint = Endpoint(model=values.target, base_url=values.base_url, **given(values, fields))
    asked = given(values, ("format", "show_admissible", "history", "system_message", "price"))
    return evaluate_endpoint(endpoint, settings=settings, **_played(values), **asked)


def _played(values: argparse.Namespace) -> dict[str, Any]:
    shared = ("env", "data", "split", "episodes", "seed", "protocol", "episodes_to")
    return {**{name: getattr(values, name) for name in shared}, "so_far": partial(print_so_far, values.episodes_to)}


def _parser() -> Parser:
    parser = Parser(
        "eval",
        "Success rate with a 95 % interval, per task type; whole splits in a fixed order.",
        epilog="--env.key value sets another key of [env] (docs/recipes.md), such as --env.distractors 3",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="a run, a checkpoint, a folder that transformers loads, or random, walkthrough, expert; a model's name "
        "with --base-url",
    )
    add_plugin(parser)
    parser.add_argument("--env", metavar="NAME", help="the world (default: the run's)")
    parser.add_argument("--data", metavar="DIR", help="the world's downloaded data (default: the run's)")
    parser.add_argument("--split", metavar="A,B", type=names, help="splits (default: the run's)")
    add = parser.add_argument
    add("--episodes", metavar="all|N", type=_episodes, help="of each split, spread over it (default: all)")
    add("--free", metavar="N", type=whole_number, help="played again without restriction (default: in proportion)")
    add("--probe", metavar="N", type=whole_number, help="scripted ones, to measure what it knows (default: likewise)")
    parser.add_argument("--temperature", metavar="T", type=number, help="of sampling; 0: the most likely token")
    parser.add_argument("--actions", choices=("admissible", "free"), help="what may be said (default: the run's)")
    parser.add_argument("--seed", metavar="N", type=whole_number, help="of sampling")
    parser.add_argument("--protocol", choices=("whole", "published"), help="published: 128 draws of each split")
    add("--json", metavar="FILE", type=Path, help="write all measurements to this file")
    add("--no-memory", action="store_true", help="tell a run with a memory nothing of it")
    add("--episodes-to", metavar="FILE", type=Path, help="keep episodes here as they end, and go on from it (.jsonl)")
    add_chat(parser)
    add_endpoint(parser).add_argument(
        "--price", metavar="IN,OUT", type=_price, help="of a million prompt and a million completion tokens"
    )
    return parser


def _episodes(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be 'all' or a whole number of at least 1, not '{text}'")
    return int(text)


def _price(text: str) -> tuple[float, float]:
    prices = text.split(",")
    if len(prices) != 2:
        raise argparse.ArgumentTypeError(f"must be two numbers with a comma between them, not '{text}'")
    return number(prices[0]), number(prices[1])
