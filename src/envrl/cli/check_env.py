"""`envrl check-env ENV`: the contract test of a world."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.cli.arguments import Parser


def run(arguments: Sequence[str]) -> int:
    """Test a world against the contract of environments; status 1 where it breaks it."""
    parser = Parser(
        "check-env", "Test a world: deterministic, resets independent, odd commands harmless, save/load exact."
    )
    parser.add_argument("env", metavar="ENV", help="the world, such as household or alfworld")
    parser.add_argument("--data", metavar="DIR", help="the world's downloaded data")
    parser.add_argument("--split", default="train", help="the split to try tasks of (default: train)")
    values = parser.parse(arguments)

    from envrl.envs.check import check_env

    report = check_env(values.env, data=values.data, split=values.split)
    print(report)
    return 0 if report.passed else 1
