"""`envrl compare RUN|FILE.json … [--metric M] [--split A,B] [--level L] [--against ARM] [--format F] [--out DIR]`"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envrl.cli.arguments import Parser, check_output, check_picture, names
from envrl.errors import UserError, suggest

if TYPE_CHECKING:
    from envrl.report.compare import Arm

_FORMATS = ("terminal", "markdown", "latex")
_RUNS_ONLY = ("metric", "split", "level", "against", "out", "picture")


def run(arguments: Sequence[str]) -> int:
    """Print tables of runs, those that differ in their seed alone as one arm; with `--out` also write and draw them."""
    options = _parser().parse(arguments)
    _check(options)

    from envrl.report.panels import are_records, panel_table

    if are_records(options.runs):
        if given := [name for name in _RUNS_ONLY if getattr(options, name) is not None]:
            raise UserError(f"--{given[0]} is about runs, and the record of a panel has one evaluation: leave it out")
        print(panel_table(options.runs))
        return 0

    from envrl.report.compare import load_arms

    arms = load_arms(options.runs, completed)
    form = options.format or ("terminal" if sys.stdout.isatty() else "markdown")
    text = compare_arms(arms, options, form)
    print(text)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "compare",
        "Arms beside each other, over their seeds: intervals, paired differences, what could have been found.",
        usage="RUN|FILE.json ... [--metric M] [--split A,B] [--level L] [--against ARM] "
        "[--format terminal|markdown|latex] [--out DIR] [--picture FILE.svg]",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="runs, what 'report --results' or 'sweep' wrote, or what 'panel' wrote",
    )
    parser.add_argument("--metric", metavar="M", help="what is compared (default: success_rate)")
    parser.add_argument("--split", metavar="A,B", type=names, help="on these splits (default: all that were evaluated)")
    parser.add_argument("--level", metavar="L", type=float, help="how soon it is reached (default: the baseline's end)")
    parser.add_argument("--against", metavar="ARM", help="the baseline of the other arms (default: the first)")
    parser.add_argument(
        "--format", choices=_FORMATS, help="of the tables (default: terminal in a terminal, else markdown)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="also write tables, JSON and plots there")
    parser.add_argument("--picture", metavar="FILE.svg", type=Path, help="also draw the curves (.svg, .pdf or .png)")
    return parser


def compare_arms(arms: Sequence[Arm], options: Namespace, form: str) -> str:
    """Return the tables of a comparison, and write what the options ask for; warnings go to standard error."""
    from envrl.report.cautions import cautions
    from envrl.report.compare import differing_keys, overview, pairs_of
    from envrl.report.measures import find_metric

    metric = find_metric(options.metric or "success_rate", [run for arm in arms for run in arm.runs])
    splits = _splits(arms, options.split)
    baseline = _baseline(arms, options.against)
    warned = cautions(arms, splits)

    from envrl.report.comparison import compare
    from envrl.report.tables import arms_table, notes, pairs_table, settings_table

    tables = [overview(arms)]
    if keys := differing_keys(arms):
        tables.insert(0, settings_table([arm.name for arm in arms], keys))
    try:
        results = compare(arms, metric, splits, options.level, pairs_of(arms, baseline))
    except UserError as error:
        if options.out or options.picture:
            raise
        results, warned = [], [*warned, str(error)]
    for result in results:
        tables += [arms_table(result, metric), *([pairs_table(result, metric)] if result.pairs else [])]
    warned += notes(results)
    for sentence in warned:
        print(f"envrl: warning: {sentence}", file=sys.stderr)
    if options.picture is not None:
        from envrl.report.figures import write_curves

        write_curves(results, metric, options.picture)
    if options.out is not None:
        from envrl.report.written import as_json, write_comparison

        about = {"metric": metric.name, "warnings": warned, "arms": _about(arms, keys)}
        write_comparison(options.out, tables, results, metric, {**about, "splits": as_json(results)})
    return "\n\n".join(table.written(form) for table in tables)


def completed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a run's configuration with every key of today, or as it is where it is none that this version reads."""
    import tomllib

    from envrl.config.load import dump_config, load_table

    try:
        return tomllib.loads(dump_config(load_table(config, "a run")))
    except UserError:
        return config


def _check(options: Namespace) -> None:
    """Refuse, before anything is read, what could not be written later."""
    from envrl.report.drawing import check_matplotlib

    if options.picture is not None:
        check_picture(options.picture)
    if options.out is not None:
        check_output(options.out / "comparison.json" if options.out.is_dir() else options.out, "--out")
        check_matplotlib("--out")


def _splits(arms: Sequence[Arm], asked: Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys(split for arm in arms for run in arm.runs for split in run.evals))
    for split in asked or ():
        if split not in known:
            raise UserError(f"none of the runs was evaluated on '{split}'{suggest(split, known)}")
    return list(asked or known)


def _baseline(arms: Sequence[Arm], name: str | None) -> int:
    known = [arm.name for arm in arms]
    if name is not None and name not in known:
        raise UserError(f"there is no arm '{name}' among the runs{suggest(name, known)}")
    return 0 if name is None else known.index(name)


def _about(arms: Sequence[Arm], keys: dict[str, list[object]]) -> list[dict[str, object]]:
    return [
        {
            "name": arm.name,
            "runs": [run.name for run in arm.runs],
            "settings": {key: values[index] for key, values in keys.items()},
        }
        for index, arm in enumerate(arms)
    ]
