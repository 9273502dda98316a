"""`envrl report RUN`: the HTML file of a run, and what it learned in a few lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from envrl.cli.arguments import Parser
from envrl.cli.words import learned_lines
from envrl.errors import UserError


def run(arguments: Sequence[str]) -> int:
    """Write the report of a run; print what it learned and where the file is."""
    parser = Parser("report", "Write one self-contained HTML file about a run.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's directory")
    directory: Path = parser.parse(arguments).run
    if not (directory / "config.toml").is_file():
        raise UserError(f"{directory} is not a run: it has no config.toml")

    from envrl.report.html import write_report

    path = write_report(directory)
    for line in learned_lines(_records(directory / "eval.jsonl")):
        print(line)
    print(f"report: {path}")
    return 0


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a JSON-lines file; a last line that is being written is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
