"""`envrl bench env NAME`: throughput, as JSON on stdout."""

from __future__ import annotations

import json
from collections.abc import Sequence

from envrl.cli.arguments import Parser, number
from envrl.errors import UserError, suggest


def run(arguments: Sequence[str]) -> int:
    """Measure a world's steps a second, and the time to load and to reset a task."""
    parser = Parser("bench", "Measure throughput; prints JSON.")
    parser.add_argument("what", metavar="env", help="what to measure")
    parser.add_argument("name", metavar="NAME", help="the world, such as household or alfworld")
    parser.add_argument("--data", metavar="DIR", help="the world's downloaded data")
    parser.add_argument("--seconds", type=number, default=2.0, metavar="S", help="how long to play (default: 2)")
    values = parser.parse(arguments)
    if values.what != "env":
        raise UserError(f"unknown benchmark '{values.what}'{suggest(values.what, ['env'])}")

    from envrl.envs.bench import bench_env

    print(json.dumps(bench_env(values.name, data=values.data, seconds=values.seconds), indent=1))
    return 0
