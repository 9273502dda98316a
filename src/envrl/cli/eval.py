"""`envrl eval RUN|CHECKPOINT|MODEL|random|walkthrough|expert`: whole splits, with intervals."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from envrl.cli.arguments import Parser, check_output, names, number, split_overrides, whole_number
from envrl.cli.words import evaluation_lines
from envrl.config.keys import KEYS


def run(arguments: Sequence[str]) -> int:
    """Evaluate an agent, print its success rates, and write all measurements where `--json` says."""
    settings, rest = split_overrides(arguments)
    values = _parser().parse(rest, also=[f"--{key}" for key in KEYS if key.startswith("env.")])
    if values.json is not None:
        check_output(values.json, "--json")

    from envrl.eval.evaluate import evaluate

    records = evaluate(
        values.target,
        env=values.env,
        data=values.data,
        split=values.split,
        episodes=values.episodes,
        temperature=values.temperature,
        actions=values.actions,
        seed=values.seed,
        settings=settings,
    )
    if values.json is not None:
        from envrl.trainer.files import write_json

        write_json(values.json, records)
    print("\n".join(line for record in records for line in evaluation_lines(record)))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "eval",
        "Success rate with a 95 % interval, per task type; whole splits in a fixed order.",
        epilog="--env.key value sets another key of [env] (docs/recipes.md), such as --env.distractors 3",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="a run, a checkpoint, a folder that transformers loads, or random, walkthrough, expert",
    )
    parser.add_argument("--env", metavar="NAME", help="the world (default: the run's)")
    parser.add_argument("--data", metavar="DIR", help="the world's downloaded data (default: the run's)")
    parser.add_argument("--split", metavar="A,B", type=names, help="splits (default: the run's)")
    parser.add_argument("--episodes", metavar="all|N", type=_episodes, help="of each split (default: all)")
    parser.add_argument("--temperature", metavar="T", type=number, help="of sampling; 0: the most likely token")
    parser.add_argument("--actions", choices=("admissible", "free"), help="what may be said (default: the run's)")
    parser.add_argument("--seed", metavar="N", type=whole_number, help="of sampling")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all measurements to this file")
    return parser


def _episodes(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be 'all' or a whole number of at least 1, not '{text}'")
    return int(text)
