"""`envrl eval RUN|CHECKPOINT|MODEL|random|walkthrough|expert`: whole splits, with intervals.

With `--base-url` MODEL is a name that an OpenAI-compatible endpoint knows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from envrl.cli.arguments import Parser, add_plugin, check_output, names, number, split_overrides, whole_number
from envrl.cli.words import evaluation_lines
from envrl.config.keys import KEYS, describe, parse_value
from envrl.config.plugins import load_plugins
from envrl.errors import UserError

_ASKING = ("key_variable", "concurrency", "timeout", "retries", "price")
"""The options that an endpoint alone has."""
_PROMPTING = ("format", "show_admissible", "history", "max_tokens", "system_message", "template_arguments")
"""The options that say how any chat model is asked."""
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
    for name in _ASKING:
        if getattr(values, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for a model behind an endpoint; name it by --base-url")
    for name in _PROMPTING:
        if getattr(values, name) is not None and values.format is None:
            raise UserError(f"--{name.replace('_', '-')} is for a chat model; name its --format too")

    from envrl.eval.evaluate import evaluate

    return evaluate(
        values.target,
        temperature=values.temperature,
        actions=values.actions,
        settings=settings,
        **_given(values, (*_PROMPTING, *_MEASURED)),
        **_played(values),
    )


def _evaluate_endpoint(values: argparse.Namespace, settings: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    if values.actions is not None:
        raise UserError("--actions means nothing to an endpoint, whose model writes freely; leave it out")
    for name in _MEASURED:
        if getattr(values, name) is not None:
            raise UserError(f"--{name} is measured of a model whose weights are here, not of an endpoint; leave it out")

    from envrl.eval.client import Endpoint
    from envrl.eval.endpoint import evaluate_endpoint

    fields = ("temperature", "max_tokens", "key_variable", "concurrency", "timeout", "retries", "template_arguments")
    endpoint = Endpoint(model=values.target, base_url=values.base_url, **_given(values, fields))
    asked = _given(values, ("format", "show_admissible", "history", "system_message", "price"))
    return evaluate_endpoint(endpoint, settings=settings, **_played(values), **asked)


def _played(values: argparse.Namespace) -> dict[str, Any]:
    shared = ("env", "data", "split", "episodes", "seed", "protocol", "episodes_to")
    return {**{name: getattr(values, name) for name in shared}, "so_far": partial(_so_far, values.episodes_to)}


def _so_far(file: Path | None, records: Sequence[dict[str, Any]]) -> None:
    """Print what is known of an evaluation that breaks off."""
    lines = [line for record in records for line in evaluation_lines(record)]
    where = f"kept in {file}: the same command goes on from there" if file else "not kept: name a file by --episodes-to"
    if lines:
        print("\n".join([*lines, f"broken off; {where}"]), flush=True)


def _given(values: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
    """Return the options that were given; the defaults of the others are the functions' own."""
    return {name: getattr(values, name) for name in options if getattr(values, name) is not None}


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
    add("--episodes-to", metavar="FILE", type=Path, help="keep episodes here as they end, and go on from it (.jsonl)")
    _add_endpoint(parser)
    return parser


def _add_endpoint(parser: Parser) -> None:
    """Add the options of docs/prompts.md, absent (None) unless they are given."""
    add = parser.add_argument_group("a chat model that is no run's").add_argument
    add("--format", metavar="NAME", help="of the prompt: tags, action, react, json, plan (an endpoint: tags)")
    add("--show-admissible", metavar="yes|no", type=_yes_or_no, help="list the accepted commands (default: yes)")
    add("--history", metavar="N", type=whole_number, help="turns in the prompt (default: 2)")
    add("--max-tokens", metavar="N", type=whole_number, help="of a response (default: 512)")
    add("--system-message", metavar="TEXT", help="said before everything else (default: the chat template's own)")
    about = """of the chat template, such as '{"enable_thinking": false}'"""
    add("--template-arguments", metavar="JSON", type=_table, help=about)
    add = parser.add_argument_group("a chat model behind an OpenAI-compatible endpoint").add_argument
    add("--base-url", metavar="URL", help="its address, such as http://localhost:8000/v1")
    add("--key-variable", metavar="NAME", help="the environment variable with its key (default: OPENAI_API_KEY)")
    add("--concurrency", metavar="N", type=whole_number, help="requests at once (default: 8)")
    add("--timeout", metavar="SECONDS", type=number, help="that a request may take (default: 120)")
    add("--retries", metavar="N", type=whole_number, help="of a request that failed (default: 5)")
    add("--price", metavar="IN,OUT", type=_price, help="of a million prompt and a million completion tokens")


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"must be yes or no, not '{text}'")
    return text == "yes"


def _table(text: str) -> dict[str, Any]:
    key = KEYS["model.template_arguments"]
    try:
        return msgspec.convert(parse_value(text, key.annotation), key.annotation)
    except msgspec.ValidationError:
        raise argparse.ArgumentTypeError(f"must be {describe(key.annotation)}, not '{text}'") from None


def _price(text: str) -> tuple[float, float]:
    prices = text.split(",")
    if len(prices) != 2:
        raise argparse.ArgumentTypeError(f"must be two numbers with a comma between them, not '{text}'")
    return number(prices[0]), number(prices[1])


def _episodes(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be 'all' or a whole number of at least 1, not '{text}'")
    return int(text)
