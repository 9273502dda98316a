"""What there is of each run of a sweep, from the runs' folders and the records of finished ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from envrl.config.load import config_differences, flat_values, load_run, load_table
from envrl.config.schema import Config
from envrl.config.values import show
from envrl.errors import UserError
from envrl.report.read import load_run as read_run
from envrl.report.read import setting
from envrl.report.results import read_result
from envrl.report.summary import stage_seconds
from envrl.sweep.plan import PlannedRun

_HERE = ("env.data", "train.device")
"""Keys that say where a run was made, beside `train.threads`."""
_SHOWN = 3
"""Keys that are named of a run whose configuration has changed."""


class Status(Enum):
    """What there is of a run: a record, a finished folder without one, an unfinished folder, nothing."""

    RECORDED = "done"
    FINISHED = "done, to be recorded"
    BEGUN = "to go on"
    TO_DO = "to do"


@dataclass(frozen=True, slots=True)
class Places:
    """Where a sweep keeps its runs, and the records of finished ones."""

    runs: Path
    results: Path

    def run(self, name: str) -> Path:
        return self.runs / name

    def record(self, name: str) -> Path:
        return self.results / f"{name}.json"

    def recipe(self, name: str) -> Path:
        return self.runs / "recipes" / f"{name}.toml"

    def log(self, name: str) -> Path:
        return self.runs / "logs" / f"{name}.log"


def status_of(run: PlannedRun, places: Places) -> Status:
    """Return what there is of a run; the shared warm start has no record."""
    if run.arm and places.record(run.name).is_file():
        return Status.RECORDED
    if not (places.run(run.name) / "config.toml").is_file():
        return Status.TO_DO
    return Status.FINISHED if is_finished(places.run(run.name)) else Status.BEGUN


def is_finished(run: Path) -> bool:
    """Return whether a run's last update is done and evaluated."""
    try:
        found = read_run(run)
    except UserError:  # nothing is written yet
        return False
    return found.finished and set(setting(found.config, "eval.split") or ()) <= set(found.evals)


def check_unchanged(runs: Sequence[PlannedRun], places: Places) -> None:
    """Raise `UserError` where a run was made, or begun, with another configuration than the sweep asks for now."""
    changed = {run.name: found for run in runs if (found := differences(run, places))}
    if not changed:
        return
    name, found = next(iter(changed.items()))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    others = "" if len(changed) == 1 else f"; so are {len(changed) - 1} more: {', '.join(list(changed)[1:])}"
    raise UserError(
        f"the sweep has changed since {name} was run ({'; '.join(found[:_SHOWN])}{more}){others}: to run them anew, "
        f"move {places.runs}/NAME and {places.results}/NAME.json away; to keep them, give the sweep's file another name"
    )


def differences(run: PlannedRun, places: Places) -> list[str]:
    """Return in words how a run that there is differs from the planned one; nothing for one that there is not."""
    record, folder = places.record(run.name), places.run(run.name)
    if run.arm and record.is_file():
        try:
            made = load_table(json.loads(record.read_text(encoding="utf-8"))["config"], f"'{record}'")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            read_result(record)  # has the better sentence
            raise UserError(f"{record} does not hold the results of a run: remove it, or restore it") from None
        return _differences(_as_recorded(run.config), _as_recorded(made), _idle_of_record(run.config))
    if (folder / "config.toml").is_file():
        return _differences(run.config, load_run(folder), _HERE)
    return []


def seconds_of(run: PlannedRun, places: Places) -> float | None:
    """Return the seconds that a recorded run took, warm start, updates and evaluations; None for any other."""
    if not places.record(run.name).is_file():
        return None
    stages = stage_seconds(read_result(places.record(run.name)))
    return stages["updates"] + stages["evaluations"] + (0.0 if run.config.warm_start.path else stages["warm start"])


def _differences(planned: Config, made: Config, idle: Sequence[str]) -> list[str]:
    if not planned.train.threads:  # then it is whatever this machine has to share out
        made = replace(made, train=replace(made.train, threads=0))
    if not planned.model.revision:
        made = replace(made, model=replace(made.model, revision=""))
    for part in ("train", "rollout"):
        if getattr(planned, part).precision == "auto":
            made = replace(made, **{part: replace(getattr(made, part), precision="auto")})
    before, after = flat_values(made), flat_values(planned)
    keys = [key for key in config_differences(planned, made) if not key.startswith(tuple(idle))]
    return [f"{key} was {show(before.get(key, 'unset'))} and is {show(after.get(key, 'unset'))}" for key in keys]


def _as_recorded(config: Config) -> Config:
    """Return a configuration as a record holds it: without the places of files."""
    return replace(
        config,
        warm_start=replace(config.warm_start, path=""),
        model=replace(config.model, path=Path(config.model.path).name if config.model.path else ""),
    )


def _idle_of_record(config: Config) -> tuple[str, ...]:
    """Return the keys that a record has from the run that made the warm start, where the run's own are idle."""
    return (*_HERE, "warm_start.") if config.warm_start.path else _HERE
