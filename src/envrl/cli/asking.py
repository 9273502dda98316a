"""What `envrl eval` and `envrl panel` share: how a chat model is asked, and what is known when one breaks off."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from envrl.cli.arguments import Parser, number, whole_number
from envrl.cli.words import evaluation_lines
from envrl.config.keys import KEYS, describe, parse_value
from envrl.errors import UserError

ASKING = ("key_variable", "concurrency", "timeout", "retries")
"""The options that an endpoint alone has."""
PROMPTING = ("format", "show_admissible", "history", "max_tokens", "system_message", "template_arguments")
"""The options that say how any chat model is asked."""


def add_chat(parser: Parser) -> None:
    """Add the options that say how a chat model is asked (docs/prompts.md), absent (None) unless they are given."""
    add = parser.add_argument_group("a chat model that is no run's").add_argument
    add("--format", metavar="NAME", help="of the prompt: tags, action, react, json, plan (an endpoint: tags)")
    add("--show-admissible", metavar="yes|no", type=_yes_or_no, help="list the accepted commands (default: yes)")
    add("--history", metavar="N", type=whole_number, help="turns in the prompt (default: 2)")
    add("--max-tokens", metavar="N", type=whole_number, help="of a response (default: 512)")
    add("--system-message", metavar="TEXT", help="said before everything else (default: the chat template's own)")
    about = """of the chat template, such as '{"enable_thinking": false}'"""
    add("--template-arguments", metavar="JSON", type=_table, help=about)


def add_endpoint(parser: Parser) -> Any:
    """Add the options of an endpoint, absent (None) unless they are given, and return their group."""
    group = parser.add_argument_group("a chat model behind an OpenAI-compatible endpoint")
    add = group.add_argument
    add("--base-url", metavar="URL", help="its address, such as http://localhost:8000/v1")
    add("--key-variable", metavar="NAME", help="the environment variable with its key (default: OPENAI_API_KEY)")
    add("--concurrency", metavar="N", type=whole_number, help="requests at once (default: 8)")
    add("--timeout", metavar="SECONDS", type=number, help="that a request may take (default: 120)")
    add("--retries", metavar="N", type=whole_number, help="of a request that failed (default: 5)")
    return group


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


def check_without_endpoint(values: argparse.Namespace) -> None:
    """Raise `UserError` for options that mean nothing to a model at hand."""
    for name in (*ASKING, "price"):
        if getattr(values, name, None) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for a model behind an endpoint; name it by --base-url")
    for name in PROMPTING:
        if getattr(values, name) is not None and values.format is None:
            raise UserError(f"--{name.replace('_', '-')} is for a chat model; name its --format too")


def check_with_endpoint(actions: str | None) -> None:
    """Raise `UserError` if actions are restricted."""
    if actions is not None:
        raise UserError("--actions means nothing to an endpoint, whose model writes freely; leave it out")


def print_so_far(file: Path | None, records: Sequence[dict[str, Any]]) -> None:
    """Print what is known of an evaluation that breaks off."""
    lines = [line for record in records for line in evaluation_lines(record)]
    where = f"kept in {file}: the same command goes on from there" if file else "not kept: name a file by --episodes-to"
    if lines:
        print("\n".join([*lines, f"broken off; {where}"]), flush=True)


def given(values: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
    """Return the options that were given; the defaults of the others are the functions' own."""
    return {name: getattr(values, name) for name in options if getattr(values, name) is not None}
