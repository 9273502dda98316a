"""A run's files as records; nothing is computed again and no other part of the program is needed to read them."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envrl.errors import RunError, UserError
from envrl.older import in_present_keys
from envrl.registry import KINDS, find

Record = Mapping[str, Any]


class EmptyRun(UserError):
    """A run holds no line of anything yet."""


@dataclass(frozen=True, slots=True)
class Games:
    """The outcomes of an evaluation: a letter a game, "1" for a win, in the order of the games' ids.

    `sha256` is that of the ids, so that two evaluations with the same one played the same games.
    """

    sha256: str
    won: str


@dataclass(frozen=True, slots=True)
class RunData:
    """What a run directory holds; `evals` are those of stage "rl", by split, in the order of their updates."""

    path: Path
    config: Mapping[str, Any]
    config_text: str
    metrics: tuple[Record, ...]
    warm_start: tuple[Record, ...]
    evals: Mapping[str, tuple[Record, ...]]
    data: Mapping[str, str] = field(default_factory=dict)
    """A SHA-256 of each split's data, where it was downloaded."""
    games: Mapping[str, Mapping[int, Games]] = field(default_factory=dict)
    """Which games were won, by split and update; of a run's folder `envrl.report.games` reads it when it is needed."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def updates(self) -> int:
        """The number of updates done."""
        return max([_update(record) for record in self.metrics], default=0)

    @property
    def updates_planned(self) -> int:
        planned = setting(self.config, "train.updates")
        return planned if isinstance(planned, int) and not self._budget_spent else self.updates

    @property
    def _budget_spent(self) -> bool:
        """Whether the token budget, if there is one, is spent."""
        budget = setting(self.config, "train.token_budget")
        last = self.metrics[-1:] or self.warm_start[-1:]
        learned = [number(record, "learned_tokens" if self.metrics else "tokens") or 0 for record in last]
        return isinstance(budget, int) and 0 < budget <= sum(learned)

    @property
    def finished(self) -> bool:
        """Whether the last planned update is done and evaluated."""
        done = [_update(records[-1]) for records in self.evals.values() if records]
        return self.updates >= self.updates_planned and bool(done) and min(done) >= self.updates_planned


def load_run(run: Path, *, empty: bool = False) -> RunData:
    """Read a run directory, also one that is still being written.

    Raises `UserError` where it is none or has a line that is not JSON, `EmptyRun` where it holds nothing yet, unless
    `empty` is allowed.
    """
    config, config_text = _config_with_text(run)
    metrics = tuple(read_lines(run / "metrics.jsonl"))
    warm_start = tuple(read_lines(run / "warm_start.jsonl"))
    evals = _by_split(read_lines(run / "eval.jsonl"))
    if not (metrics or warm_start or evals or empty):
        raise EmptyRun(f"{run} has nothing to report yet: no metrics, no evaluation and no warm start are in it")
    return RunData(run, config, config_text, metrics, warm_start, evals, _data_of(run / "data.json"))


def _data_of(file: Path) -> dict[str, str]:
    """Return the SHA-256 of each split's data; nothing where the run has no such file, or it is unreadable."""
    try:
        splits = json.loads(file.read_text(encoding="utf-8"))["splits"]
        return {str(split): str(digest) for split, digest in splits.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def load_config(run: Path) -> Mapping[str, Any]:
    """Return a run's configuration; raises `UserError` where the directory is no run."""
    return _config_with_text(run)[0]


def _config_with_text(run: Path) -> tuple[Mapping[str, Any], str]:
    file = run / "config.toml"
    if not file.is_file():
        what = "there is no such directory" if not run.exists() else "it has no config.toml"
        raise UserError(f"{run} is not a run: {what}")
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        return in_present_keys(tomllib.loads(text)), text
    except (ValueError, RecursionError) as error:  # a number of too many digits is no TOMLDecodeError
        raise UserError(f"{file} is not TOML: {error}") from None


def read_lines(path: Path) -> list[Record]:
    """Return the records of a JSON-lines file, none where it is missing; a line still being written is left out."""
    if not path.is_file():
        return []
    records: list[Record] = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                break
            record = record_of(line, f"line {number} of {path}")
            rate = record.get("success_rate")
            if isinstance(rate, (int, float)) and not 0 <= rate <= 1:
                raise UserError(f"line {number} of {path} has a success_rate of {rate}, which is no share: restore it")
            records.append(record)
    return records


def record_of(line: str | bytes, where: str) -> Record:
    """Return the record of a line; raises `UserError` if it is no JSON object, `where` says of which line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where} is not JSON: remove the line, or restore the file") from None
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a JSON object: remove the line, or restore the file")
    return record


def number(record: Record, key: str) -> float | None:
    """Return a figure of a record, or None where it is missing, null, or no finite number; "a > b" looks inside "a"."""
    value: Any = record
    for part in key.split(" > "):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def series(records: Iterable[Record], x: str, y: str) -> list[tuple[float, float]]:
    """Return the (x, y) of all records that have both."""
    pairs = [(number(record, x), number(record, y)) for record in records]
    return [(a, b) for a, b in pairs if a is not None and b is not None]


def interval(record: Record, key: str = "ci95") -> tuple[float, float] | None:
    """Return an interval of a record where it is a pair of numbers."""
    bounds = record.get(key)
    ends = [number({"": bound}, "") for bound in bounds] if isinstance(bounds, list) else []
    if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
        return ends[0], ends[1]
    return None


def before_and_after(evals: Iterable[Record]) -> tuple[Record | None, Record | None]:
    """Return the evaluation at update 0 and the last one after it."""
    before = after = None
    for record in evals:
        if _update(record) == 0:
            before = record
        else:
            after = record
    return before, after


def has_scores(records: Iterable[Record]) -> bool:
    """Return whether some evaluation's score says more than its success: rewards in part, or other than 1 for a win."""
    return any(
        (score := number(record, "score")) is not None
        and number(record, "score_sd") is not None
        and abs(score - (number(record, "success_rate") or 0.0)) > 1e-9
        for record in records
    )


def setting(config: Mapping[str, Any], key: str) -> Any:
    """Return a setting by its dotted name, None where the configuration lacks it."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


WEIGHED = tuple(kind for kind, of in KINDS.items() if not of.key)
"""The kinds of which a recipe may have several, each with a weight: auxiliary objectives, rewards, regularizers."""


def weighed(config: Mapping[str, Any], kind: str = "auxiliary") -> dict[str, Mapping[str, Any]]:
    """Return the tables of those things of a kind that have a weight in RL, by name."""
    tables = setting(config, kind)
    return {
        str(name): table
        for name, table in (tables if isinstance(tables, Mapping) else {}).items()
        if isinstance(table, Mapping) and (number(table, "weight") or 0.0) > 0
    }


def title(kind: str, name: str) -> str:
    """Return what an estimator or an auxiliary objective is called: one of ours by its title, another by its name."""
    if name in KINDS[kind].built_in:
        return str(find(kind, name).traits["title"])
    return name


def write_whole(path: Path, text: str) -> None:
    """Write a file aside and rename it; raises `RunError` where the disk does not take it."""
    aside = path.with_name(f".tmp-{path.name}")
    try:
        aside.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def _update(record: Record) -> int:
    return int(number(record, "update") or 0)


def _by_split(records: Iterable[Record]) -> dict[str, tuple[Record, ...]]:
    """Group by split; of two evaluations of the same update the later line counts."""
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        if record.get("stage", "rl") == "rl" and number(record, "success_rate") is not None:
            found.setdefault(str(record.get("split", "")), {})[_update(record)] = record
    return {split: tuple(by_update[u] for u in sorted(by_update)) for split, by_update in found.items()}
