"""A comparison as files: tables, JSON, plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envrl.report.comparison import SplitResult
from envrl.report.figures import write_figures
from envrl.report.measures import Metric
from envrl.report.read import write_whole
from envrl.report.tables import Table


def write_comparison(
    folder: Path, tables: Sequence[Table], results: Sequence[SplitResult], metric: Metric, record: Mapping[str, Any]
) -> None:
    """Write `comparison.md`, `.tex`, `.json` and the figures into a folder, which is made."""
    folder.mkdir(exist_ok=True)
    for suffix, form in (("md", "markdown"), ("tex", "latex")):
        write_whole(folder / f"comparison.{suffix}", "\n\n".join(table.written(form) for table in tables) + "\n")
    write_whole(folder / "comparison.json", json.dumps(record, indent=1) + "\n")
    write_figures(results, metric, folder)
