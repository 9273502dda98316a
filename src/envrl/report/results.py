"""A finished run as one small JSON file that can be committed: what ran, and every figure that tables are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from envrl.errors import UserError
from envrl.older import in_present_keys
from envrl.report.games import Outcomes, agreeing, outcomes_as_json, outcomes_in, outcomes_of_json
from envrl.report.read import Record, RunData, load_config, load_run, number, setting, write_whole

FORMAT = 2
"""1 had a line an update in `metrics`, and neither `games` nor `data`."""
_DIGITS = 6
"""Significant digits of an update's figures; those of evaluations are kept whole."""
_STEPS = 50
"""About how many steps of a warm start a record keeps: their losses are read as a curve."""
_PLACES = ("env.data", "warm_start.path")
"""Settings that say where things lie on one machine."""


def result_of(run: RunData) -> dict[str, Any]:
    """Return a run as a record: configuration with its hash, lines of the warm start, of all updates and evaluations.

    What a shared warm start was made with stands in place of the run's own idle settings; no record names a folder.
    `games` says which games of each evaluation were won, `data` which data was played.
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
        "format": FORMAT,
        "name": run.name,
        "finished": run.finished,
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "data": dict(run.data),
        "config": config,
        "warm_start": columns(thinned(start, _STEPS)),
        "metrics": columns(run.metrics),
        "evals": {split: list(records) for split, records in run.evals.items()},
        "games": outcomes_as_json(outcomes_of(run)),
    }


def outcomes_of(run: RunData) -> Outcomes:
    """Return which games of a run's evaluations were won, those before RL also where the run took them over."""
    if run.games:
        return run.games
    found = outcomes_in(run.path, run.config)
    shared = [split for split, records in run.evals.items() if number(records[0], "seconds > shared") is not None]
    if shared and (origin := origin_of(run)) is not None:
        before = outcomes_in(origin, load_config(origin))
        for split in shared:
            ours, theirs = found.get(split, {}), before.get(split, {})
            found[split] = {**({0: theirs[0]} if 0 in theirs else {}), **ours}
    return agreeing(found, run)


def columns(records: Sequence[Record]) -> dict[str, Any]:
    """Return records as a column a key, inner tables as tables of columns; floats are rounded to six digits."""
    keys = dict.fromkeys(key for record in records for key in record)
    found: dict[str, Any] = {}
    for key in keys:
        values = [record.get(key) for record in records]
        if all(isinstance(value, Mapping) for value in values):
            found[key] = columns([dict(value) for value in values if isinstance(value, Mapping)])
        else:
            found[key] = [float(f"{v:.{_DIGITS}g}") if isinstance(v, float) else v for v in values]
    return found


def thinned(records: Sequence[Record], count: int) -> list[Record]:
    """Return about `count` records, evenly spaced, and all that measure what was held out; seconds are those since.

    So the sums of `seconds` stay what they were.
    """
    stride, kept, spent = max(1, len(records) // count), list[Record](), dict[str, float]()
    for place, record in enumerate(records, 1):
        seconds = record.get("seconds")
        if isinstance(seconds, Mapping):
            spent |= {key: spent.get(key, 0.0) + value for key, value in seconds.items()}
        measured = any(key.startswith("held_out/") and value is not None for key, value in record.items())
        if measured or place % stride == 0 or place == len(records):
            kept.append({**record, "seconds": spent} if spent else record)
            spent = {}
    return kept


def rows(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the records of `columns`, a missing value as null."""
    parts = {key: list(rows(value)) if isinstance(value, Mapping) else value for key, value in table.items()}
    for values in zip(*parts.values(), strict=True):
        yield dict(zip(parts, values, strict=True))


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
    write_whole(file, _text(result_of(data)))


def _text(record: Mapping[str, Any]) -> str:
    """Return a record as JSON with a line a key, and one a column or an evaluation, so that changes can be read."""

    def lines(value: Any, depth: int) -> str:
        if not depth or not isinstance(value, (dict, list)) or not value:
            return json.dumps(value)
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        parts = (
            [f"{json.dumps(key)}: {lines(part, depth - 1)}" for key, part in value.items()]
            if isinstance(value, dict)
            else [lines(part, depth - 1) for part in value]
        )
        return opening + "\n" + ",\n".join(parts) + "\n" + closing

    return lines(dict(record), 3) + "\n"


def read_result(file: Path) -> RunData:
    """Return the run that a file of `write_result` holds, of this version or an earlier one.

    Raises `UserError` where it is no such file.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.get("format", 1) > FORMAT:
            raise UserError(
                f"{file} was written by a later version of envrl ({record.get('envrl')}), in a format that this one "
                "does not read"
            )
        evals = {split: tuple(records) for split, records in record["evals"].items()}
        metrics, start = (
            tuple(rows(record[key]) if isinstance(record[key], dict) else record[key])
            for key in ("metrics", "warm_start")
        )
        return RunData(
            file.with_name(record["name"]),
            in_present_keys(record["config"]),
            "",
            metrics,
            start,
            evals,
            data=record.get("data", {}),
            games=outcomes_of_json(record.get("games", {})),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        how = "'envrl report RUN --results FILE.json' writes them"
        raise UserError(f"{file} does not hold the results of a run ({error}): {how}") from None
