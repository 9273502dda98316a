"""Several runs beside each other: runs that differ in their seed alone are one arm, and one line of a table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from envrl.errors import UserError
from envrl.report.read import (
    WEIGHED,
    EmptyRun,
    Record,
    RunData,
    has_scores,
    load_config,
    load_run,
    number,
    setting,
    weighed,
)
from envrl.report.results import origin_of, outcomes_of, read_result
from envrl.report.summary import duration, method, stage_seconds
from envrl.report.table import Table
from envrl.statistics import mean_interval, pooled, wilson

_DASH = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Measure:
    """What runs are compared by: its name, its key in eval.jsonl, and its value and interval over some records."""

    name: str
    key: str
    pool: Callable[[Sequence[Record]], tuple[float, float, float] | None]
    rate: bool


@dataclass(frozen=True, slots=True)
class Arm:
    """The runs of one configuration, a seed each, under the algorithm's name."""

    name: str
    runs: tuple[RunData, ...]

    def records(self, split: str, after: bool) -> list[Record]:
        """Return each run's evaluation of a split before RL, or the last one after it that all of them have.

        Seeds that share a warm start made one and the same evaluation before RL, which counts once.
        """
        tables = [{number(record, "update") or 0.0: record for record in run.evals.get(split, ())} for run in self.runs]
        common = set(tables[0]).intersection(*tables[1:])
        wanted = max(common, default=0.0) if after else 0.0
        if wanted not in common or (after and not wanted):
            return []
        return [table[wanted] for table in tables] if after else _different([table[wanted] for table in tables])

    def updates(self) -> int:
        return max(run.updates for run in self.runs)

    def seconds(self, phase: str) -> float | None:
        """Return the mean seconds of a phase of an update, over all updates of all runs; None where none was timed."""
        spent = [number(record, f"seconds > {phase}") for run in self.runs for record in run.metrics]
        known = [value for value in spent if value is not None]
        return mean(known) if known else None


def load_arms(
    runs: Sequence[Path], complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: config
) -> list[Arm]:
    """Return the runs, directories or files of `envrl report RUN --results`, by configuration, as each first comes.

    The seed and where a shared warm start lies are no part of it. `complete` fills in the settings that a run of
    another version lacks. Raises `UserError` for a directory that is no run, one that is given twice, runs of different
    worlds, and quick runs beside others.
    """
    resolved = [run.resolve() for run in runs]
    for index, run in enumerate(resolved):
        if run in resolved[:index]:
            raise UserError(f"the run {runs[index]} is given twice; leave one out")
    loaded = [replace(run, config=complete(run.config), games=outcomes_of(run)) for run in _read(runs)]
    worlds = {str(setting(run.config, "env.name")): run.path for run in loaded}
    if len(worlds) > 1:
        (first, a), (second, b), *_ = worlds.items()
        raise UserError(f"{a} plays {first} and {b} plays {second}: runs of different worlds cannot be compared")
    quick = [bool(setting(run.config, "quick")) for run in loaded]
    if any(quick) and not all(quick):
        one, other = loaded[quick.index(True)].path, loaded[quick.index(False)].path
        raise UserError(f"{one} is a quick run, whose figures mean nothing beside those of {other}: leave it out")
    groups: dict[str, list[RunData]] = {}
    for run in loaded:
        groups.setdefault(_identity(run.config), []).append(run)
    for group in groups.values():
        seeds = [setting(run.config, "seed") for run in group]
        for index, run in enumerate(group):
            if seeds[index] in seeds[:index]:
                twin = group[seeds.index(seeds[index])]
                raise UserError(f"{twin.path} and {run.path} are of one configuration and one seed; leave one out")
    names = [_common_name(group) or method(group[0]) for group in groups.values()]
    return [
        Arm(name if names.count(name) == 1 else f"{name}, {group[0].name}", tuple(group))
        for name, group in zip(names, groups.values(), strict=True)
    ]


def _read(runs: Sequence[Path]) -> list[RunData]:
    """Read runs; those that hold nothing yet are left out with a warning, unless there is no other."""
    read: list[RunData] = []
    empty: list[EmptyRun] = []
    for run in runs:
        try:
            read.append(read_result(run) if run.suffix == ".json" else load_run(run))
        except EmptyRun as error:
            empty.append(error)
    if not read:
        raise empty[0]
    for error in empty:
        warnings.warn(f"{error}; it is left out", stacklevel=2)
    return read


def overview(arms: Sequence[Arm]) -> Table:
    """Return a table: success before and after RL for each split, over all seeds, and the time taken.

    Where episodes have scores other than their success, so are they. "After" is the last evaluation that all seeds
    have. The interval (Wilson's of success, the normal one of the score) is over the episodes of all seeds together, as
    if they were different games; the seeds' own figures follow.
    """
    columns = [(split, measure) for split in _splits(arms) for measure in _measures(arms, split)]
    header = ["", "demonstrations"]
    for split, measure in columns:
        header += [f"{split}{measure.name} {when}" for when in ("before RL", "after RL")]
    texts = [_perplexities(arm) for arm in arms]
    if any(texts):
        header.append("perplexity of English before RL, after")
    header += ["updates", "time a run after the warm start", "seconds an update: rollout, worlds, optimiser"]
    rows = []
    for arm, text in zip(arms, texts, strict=True):
        cells = [arm.name, _demonstrations(arm)]
        for split, measure in columns:
            cells += [_cell(measure, arm.records(split, after)) for after in (False, True)]
        if any(texts):
            cells.append(text or _DASH)
        stages = [stage_seconds(run) for run in arm.runs]
        whole = [seconds["updates"] + seconds["evaluations"] for seconds in stages]
        phases = [arm.seconds(phase) for phase in ("rollout", "env", "update")]
        cells += [str(arm.updates()), duration(mean(whole))]
        cells.append(", ".join(_DASH if value is None else f"{value:.2f}" for value in phases))
        rows.append(tuple(cells))
    return Table("Before and after RL; 95 % intervals over all games of all seeds", tuple(header), tuple(rows))


def _perplexities(arm: Arm) -> str:
    """Return the mean perplexity over seeds of the English page before and after RL; nothing where none was measured.

    Every split's record has it, so the first one's do.
    """
    split = next(iter(arm.runs[0].evals), "")
    found = []
    for after in (False, True):
        known = [value for record in arm.records(split, after) if (value := number(record, "text_perplexity"))]
        found.append(f"{mean(known):.1f}" if known else _DASH)
    return ", ".join(found) if set(found) != {_DASH} else ""


def _common_name(runs: Sequence[RunData]) -> str:
    """Return the NAME of runs that are all named NAME-SEED, as a sweep names them; empty for others."""
    found = {run.name.removesuffix(f"-{setting(run.config, 'seed')}") for run in runs}
    ours = all(run.name.endswith(f"-{setting(run.config, 'seed')}") for run in runs)
    return found.pop() if ours and len(found) == 1 else ""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes two runs the same experiment, by dotted key: neither seed, nor place, nor what was shared."""
    parts: dict[str, Any] = {}
    for section, values in config.items():
        if isinstance(values, Mapping) and section not in WEIGHED:
            for key, value in values.items():  # a table is that of what is chosen by name
                of = value if isinstance(value, Mapping) else {"": value}
                parts |= {f"{section}.{key}.{name}".rstrip("."): each for name, each in of.items()}
    for kind in WEIGHED:
        for name, table in weighed(config, kind).items():
            parts |= {f"{kind}.{name}.{key}": value for key, value in table.items()}
            if not table.get("schedule_updates"):  # 0 stands for train.updates
                parts[f"{kind}.{name}.schedule_updates"] = parts.get("train.updates")
    ignored = ("warm_start.path", "env.data", "train.threads", "train.device")
    return {key: value for key, value in parts.items() if key not in ignored}


def differing_keys(arms: Sequence[Arm]) -> dict[str, list[Any]]:
    """Return the keys whose values differ between arms, each with the value of every arm, None where it has none."""
    tables = [settings_of(arm.runs[0].config) for arm in arms]
    keys = dict.fromkeys(key for table in tables for key in table)
    found = {key: [table.get(key) for table in tables] for key in keys}
    return {key: values for key, values in found.items() if _differ(key, values)}


def _differ(key: str, values: Sequence[Any]) -> bool:
    """Return whether values differ: settings of what is chosen by name only between arms that have it.

    What a recipe may have several of, such as auxiliary objectives, is chosen by its weight.
    """
    if key.count(".") == 2 and not (key.partition(".")[0] in WEIGHED and key.endswith(".weight")):
        values = [value for value in values if value is not None]
    return any(value != values[0] for value in values)


def pairs_of(arms: Sequence[Arm], baseline: int) -> list[tuple[int, int]]:
    """Return what to compare, as (arm, against): every arm with the baseline, and every arm with its own placebo."""
    against = [(index, baseline) for index in range(len(arms)) if index != baseline]
    tables = [settings_of(arm.runs[0].config) for arm in arms]
    bare = [{key: value for key, value in table.items() if not key.endswith(".placebo")} for table in tables]
    exchanged = [any(value for key, value in table.items() if key.endswith(".placebo")) for table in tables]
    placebos = [
        (index, other)
        for index in range(len(arms))
        for other in range(len(arms))
        if exchanged[other] and not exchanged[index] and bare[index] == bare[other]
    ]
    return [*against, *(pair for pair in placebos if pair not in against)]


def _identity(config: Mapping[str, Any]) -> str:
    return repr(sorted((key, repr(value)) for key, value in settings_of(config).items()))


def _splits(arms: Sequence[Arm]) -> list[str]:
    return list(dict.fromkeys(split for arm in arms for run in arm.runs for split in run.evals))


def _demonstrations(arm: Arm) -> str:
    """Return how many demonstrations the warm start imitated; a shared one says so in the run that it is from."""
    origin = origin_of(arm.runs[0])
    config = arm.runs[0].config if origin is None else load_config(origin)
    count = setting(config, "warm_start.demonstrations")
    return f"{count:,}" if isinstance(count, int) else _DASH


def _cell(measure: Measure, records: Sequence[Record]) -> str:
    found = measure.pool(records)
    if found is None:
        return _DASH
    values = [number(record, measure.key) or 0.0 for record in records]
    shown = [f"{100 * value:.1f}" if measure.rate else f"{value:.3f}" for value in (*found, *values)]
    words = f"{shown[0]}{' %' if measure.rate else ''} ({shown[1]} to {shown[2]})"
    return words if len(values) == 1 else f"{words}: {', '.join(shown[3:])}"


def _different(records: Sequence[Record]) -> list[Record]:
    """Return the records without those that repeat an earlier one in all but the time they took."""
    found: dict[str, Record] = {}
    for record in records:
        found.setdefault(repr({k: v for k, v in record.items() if k != "seconds"}), record)
    return list(found.values())


def _measures(arms: Sequence[Arm], split: str) -> list[Measure]:
    """Return what a split's evaluations can be compared by."""
    records = [record for arm in arms for run in arm.runs for record in run.evals.get(split, ())]
    return [_SUCCESS, _SCORE] if has_scores(records) else [_SUCCESS]


def _pooled_success(records: Sequence[Record]) -> tuple[float, float, float] | None:
    """Return the share of all records' episodes that were won, and Wilson's interval."""
    episodes = [round(number(record, "episodes") or 0.0) for record in records]
    rates = [number(record, "success_rate") or 0.0 for record in records]
    wins = sum(round(rate * count) for rate, count in zip(rates, episodes, strict=True))
    return (wins / sum(episodes), *wilson(wins, sum(episodes))) if records and all(episodes) else None


def _pooled_score(records: Sequence[Record]) -> tuple[float, float, float] | None:
    """Return the mean score of all records' episodes, and its normal interval; None where a record lacks it."""
    known = [(number(r, "score"), number(r, "score_sd"), round(number(r, "episodes") or 0.0)) for r in records]
    samples = [(mean, sd, count) for mean, sd, count in known if mean is not None and sd is not None and count]
    if not samples or len(samples) < len(records):
        return None
    centre, sd, count = pooled(samples)
    return (centre, *mean_interval(centre, sd, count))


_SUCCESS = Measure("", "success_rate", _pooled_success, rate=True)
_SCORE = Measure(", score", "score", _pooled_score, rate=False)
