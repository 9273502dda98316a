"""`envrl check-env ENV`: the contract test of a world, or a comparison with another."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.cli.arguments import Parser, add_plugin, split_overrides, whole_number, world_settings
from envrl.config.plugins import load_plugins
from envrl.errors import UserError


def run(arguments: Sequence[str]) -> int:
    """Test a world against the contract of environments, or against another world; status 1 where it fails."""
    parser = Parser(
        "check-env",
        "Test a world: deterministic, resets independent, odd commands harmless, save/load exact. With --against: the "
        "same answers as another world over the same tasks.",
        usage="ENV [--against OTHER] [--env.ENV.key value ...] [--data DIR] [--split S] [--episodes N] [--seed N]",
        epilog="--env.ENV.key value is a setting of the world itself, as in a recipe (docs/recipes.md)",
    )
    parser.add_argument("env", metavar="ENV", help="the world, such as household or alfworld")
    parser.add_argument("--against", metavar="OTHER", help="compare with this world instead, command by command")
    parser.add_argument("--data", metavar="DIR", help="the worlds' downloaded data")
    parser.add_argument("--split", default="train", help="the split to try tasks of (default: train)")
    parser.add_argument("--episodes", type=whole_number, default=8, metavar="N", help="tasks to try (default: 8)")
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="of the commands (default: 0)")
    add_plugin(parser)
    overrides, rest = split_overrides(arguments)
    values = parser.parse(rest)
    load_plugins(values.plugin)
    if values.episodes == 0:
        raise UserError("--episodes must be at least 1")
    settings = world_settings(overrides, [name for name in (values.env, values.against) if name])
    options = {"data": values.data, "split": values.split, "episodes": values.episodes, "seed": values.seed}

    if values.against is None:
        from envrl.envs.check import check_env

        report = check_env(values.env, settings=settings[values.env], **options)
    else:
        from envrl.envs.against import compare_envs

        report = compare_envs(values.env, values.against, settings=settings, **options)
    print(report)
    return 0 if report.passed else 1
