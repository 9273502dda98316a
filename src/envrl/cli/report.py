"""`envrl report RUN`: the HTML file of a run, and what it learned in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from envrl.cli.arguments import Parser


def run(arguments: Sequence[str]) -> int:
    """Write the report of a run; print what it learned and where the file is."""
    parser = Parser("report", "Write one self-contained HTML file about a run.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's directory")
    directory: Path = parser.parse(arguments).run

    from envrl.report.html import write_report
    from envrl.report.summary import summarize

    write_report(directory)
    print(summarize(directory))
    return 0
