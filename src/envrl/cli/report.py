"""`envrl report RUN`: the HTML file of a run, and what it learned in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from envrl.cli.arguments import Parser, check_output, check_picture


def run(arguments: Sequence[str]) -> int:
    """Write the report of a run; print what it learned and where the file is."""
    parser = Parser("report", "Write one self-contained HTML file about a run.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's directory")
    parser.add_argument(
        "--picture", metavar="FILE.svg", type=Path, help="also draw what was learned (.svg, .pdf, .png)"
    )
    parser.add_argument("--results", metavar="FILE.json", type=Path, help="also write what tables need of a whole run")
    options = parser.parse(arguments)
    directory: Path = options.run
    if options.picture is not None:
        check_picture(options.picture)
    if options.results is not None:
        check_output(options.results, "--results", ".json")

    from envrl.report.page import write_report
    from envrl.report.picture import write_picture
    from envrl.report.results import write_result
    from envrl.report.summary import summarize

    if options.results is not None:
        write_result(directory, options.results)
    write_report(directory)
    if options.picture is not None:
        write_picture(directory, options.picture)
    print(summarize(directory))
    return 0
