"""A finished run as one small JSON file that can be committed: what ran, and every figure that tables are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from envrl.errors import UserError
from envrl.older import in_present_keys
from envrl.report.read import RunData, load_config, load_run, setting, write_whole

_PLACES = ("env.data", "warm_start.path")
"""Settings that say where things lie on one machine."""


def result_of(run: RunData) -> dict[str, Any]:
    """Return a run as a record: configuration with its hash, lines of the warm start, of all updates and evaluations.

    What a shared warm start was made with stands in place of the run's own idle settings; no record names a folder.
    """
    config = {section: dict(each) if isinstance(each, Mapping) else each for section, each in run.config.items()}
    start = run.warm_start
    if (origin := origin_of(run)) is not None:
        made = load_run(origin)
        config["warm_start"], start = dict(made.config["warm_start"]), made.warm_start
    for key in _PLACES:
        section, _, name = key.partition(".")
        config.get(section, {}).pop(name, None)
    model = config.get("model", {})
    if Path(str(model.get("path", ""))).is_absolute():
        model["path"] = Path(model["path"]).name
    return {
        "envrl": version("envrl"),
        "name": run.name,
        "finished": run.finished,
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "config": config,
        "warm_start": list(start),
        "metrics": list(run.metrics),
        "evals": {split: list(records) for split, records in run.evals.items()},
    }


def origin_of(run: RunData) -> Path | None:
    """Return the run whose warm start a run shares, the first of a chain; None where it made its own, or it is gone."""
    config, found = run.config, list[Path]()
    while path := setting(config, "warm_start.path"):
        origin = Path(str(path)).resolve().parent
        if origin in found or not (origin / "config.toml").is_file():
            break
        found.append(origin)
        config = load_config(origin)
    return found[-1] if found else None


def write_result(run: Path, file: Path) -> None:
    """Write a run's record, whole or not at all; raises `UserError` where it is not finished."""
    data = load_run(run)
    if not data.finished:
        raise UserError(f"{run} is not finished: go on with it by --resume, results are of whole runs")
    write_whole(file, json.dumps(result_of(data), indent=1) + "\n")


def read_result(file: Path) -> RunData:
    """Return the run that a file of `write_result` holds; raises `UserError` where it is no such file."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        evals = {split: tuple(records) for split, records in record["evals"].items()}
        lines = tuple(record["metrics"]), tuple(record["warm_start"])
        config = in_present_keys(record["config"])
        return RunData(file.with_name(record["name"]), config, "", *lines, evals)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        how = "'envrl report RUN --results FILE.json' writes them"
        raise UserError(f"{file} does not hold the results of a run ({error}): {how}") from None
