"""`envrl compare RUN …`: several runs as one table, and as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from envrl.cli.arguments import Parser, check_output
from envrl.errors import UserError


def run(arguments: Sequence[str]) -> int:
    """Print a table of runs, those that differ in their seed alone in one line."""
    parser = Parser("compare", "Runs beside each other as a Markdown table; seeds of a configuration make one line.")
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="runs, what 'report --results' wrote, or what 'panel' wrote",
    )
    parser.add_argument("--picture", metavar="FILE.svg", type=Path, help="also draw success over updates")
    options = parser.parse(arguments)
    if options.picture is not None:
        check_output(options.picture, "--picture", ".svg")

    from envrl.report.panels import are_records, panel_table

    if are_records(options.runs):
        if options.picture is not None:
            raise UserError("--picture draws success over updates, which the record of a panel does not have")
        print(panel_table(options.runs))
        return 0

    from envrl.report.compare import comparison_table, load_arms, write_comparison_picture

    arms = load_arms(options.runs)
    if options.picture is not None:
        write_comparison_picture(arms, options.picture)
    print(comparison_table(arms))
    return 0
