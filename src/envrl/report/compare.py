"""Several runs beside each other: runs that differ in their seed alone make one line of a table and of a chart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import mean
from typing import Any

from envrl.errors import UserError
from envrl.report.plots import Line, line_chart
from envrl.report.read import Record, RunData, before_and_after, load_run, number, series, setting, write_whole
from envrl.report.summary import duration, method, stage_seconds
from envrl.report.svg import label, short, tag
from envrl.statistics import wilson

_DASH = "\N{EN DASH}"
_WIDTH, _HEIGHT, _TOP = 560.0, 340.0, 34.0


@dataclass(frozen=True, slots=True)
class Arm:
    """The runs of one configuration, a seed each, under the algorithm's name."""

    name: str
    runs: tuple[RunData, ...]

    def records(self, split: str, after: bool) -> list[Record]:
        """Return each run's evaluation of a split before RL, or its last one after it, where there is one."""
        found = [before_and_after(run.evals.get(split, ()))[after] for run in self.runs]
        return [record for record in found if record]

    def updates(self) -> int:
        return max(run.updates for run in self.runs)

    def seconds(self, phase: str) -> float | None:
        """Return the mean seconds of a phase of an update, over all updates of all runs; None where none was timed."""
        spent = [number(record, f"seconds > {phase}") for run in self.runs for record in run.metrics]
        known = [value for value in spent if value is not None]
        return mean(known) if known else None


def load_arms(runs: Sequence[Path]) -> list[Arm]:
    """Return the runs by configuration, in the order in which each first comes.

    The seed and where a shared warm start lies are no part of it. Raises `UserError` for a directory that is no run,
    one that is given twice, and runs of different worlds.
    """
    resolved = [run.resolve() for run in runs]
    for number_, run in enumerate(resolved):
        if run in resolved[:number_]:
            raise UserError(f"the run {runs[number_]} is given twice; leave one out")
    loaded = [load_run(run) for run in runs]
    worlds = {str(setting(run.config, "env.name")): run.path for run in loaded}
    if len(worlds) > 1:
        (first, a), (second, b), *_ = worlds.items()
        raise UserError(f"{a} plays {first} and {b} plays {second}: runs of different worlds cannot be compared")
    groups: dict[str, list[RunData]] = {}
    for run in loaded:
        groups.setdefault(_identity(run.config), []).append(run)
    names = [method(group[0]) for group in groups.values()]
    return [
        Arm(name if names.count(name) == 1 else f"{name}, {group[0].name}", tuple(group))
        for name, group in zip(names, groups.values(), strict=True)
    ]


def comparison_table(arms: Sequence[Arm]) -> str:
    """Return a Markdown table: success before and after RL for each split, as the mean over seeds, and the time taken.

    The interval is Wilson's over the episodes of all seeds together; the seeds' own figures follow.
    """
    splits = list(dict.fromkeys(split for arm in arms for run in arm.runs for split in run.evals))
    header = ["", "demonstrations", *[f"{split} {when}" for split in splits for when in ("before RL", "after RL")]]
    header += ["updates", "time a run", "seconds an update: rollout, worlds, optimiser"]
    rows = [header, ["---"] * len(header)]
    for arm in arms:
        cells = [arm.name, _demonstrations(arm)]
        for split in splits:
            cells += [_success(arm.records(split, after)) for after in (False, True)]
        whole = [sum(stage_seconds(run).values()) for run in arm.runs]
        phases = [arm.seconds(phase) for phase in ("rollout", "env", "update")]
        cells += [str(arm.updates()), duration(mean(whole))]
        cells.append(", ".join(_DASH if value is None else f"{value:.2f}" for value in phases))
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def comparison_picture(arms: Sequence[Arm]) -> str:
    """Return an SVG with a chart for each split: success over updates, the mean over seeds thick, each seed thin.

    Raises `UserError` where no run was evaluated.
    """
    splits = list(dict.fromkeys(split for arm in arms for run in arm.runs for split in run.evals))
    if not splits:
        raise UserError("none of the runs holds an evaluation yet, so there is nothing to draw")
    charts = []
    for index, split in enumerate(splits):
        top = index * (_HEIGHT + _TOP)
        lines = _lines(arms, split)
        heights = [y for line in lines for _, y in line.points]
        heights += [end for line in lines for _, *ends in line.intervals for end in ends]
        chart = line_chart(
            lines,
            width=_WIDTH + 300,
            height=_HEIGHT,
            name=f"Success on {split} over updates",
            rate=True,
            y_range=(max(0.0, min(heights) - 0.02), min(1.0, max(heights) + 0.02)),
        )
        size = {"width": short(_WIDTH + 300), "height": short(_HEIGHT)}
        charts.append(label(16, top + 24, split, "name"))
        charts.append(chart.replace("<svg ", f'<svg x="0" y="{short(top + _TOP)}" {_attributes(size)} ', 1))
    width, height = _WIDTH + 310, len(splits) * (_HEIGHT + _TOP) + 8
    style = tag("style", files("envrl.report").joinpath("chart.css").read_text("utf-8"))
    ground = tag("rect", width=width, height=height, rx=10, style="fill:#ffffff;stroke:#e3e7eb")
    return tag(
        "svg",
        style + ground + "".join(charts),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {short(width)} {short(height)}",
        width=width,
        height=height,
        class_="chart",
        role="img",
        aria_label="Success over updates",
    )


def write_comparison_picture(arms: Sequence[Arm], file: Path) -> None:
    """Write `comparison_picture` to a file, whole or not at all."""
    write_whole(file, comparison_picture(arms))


def _identity(config: Mapping[str, Any]) -> str:
    warm = {key: value for key, value in config.get("warm_start", {}).items() if key != "path"}
    return repr(sorted({**config, "seed": None, "warm_start": warm}.items()))


def _demonstrations(arm: Arm) -> str:
    count = setting(arm.runs[0].config, "warm_start.demonstrations")
    return f"{count:,}" if isinstance(count, int) else _DASH


def _success(records: Sequence[Record]) -> str:
    rates = [number(record, "success_rate") or 0.0 for record in records]
    pooled = _pooled(records)
    if pooled is None:
        return _DASH
    low, high = pooled
    words = f"{100 * mean(rates):.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    if len(rates) == 1:
        return words
    return f"{words}: {', '.join(f'{100 * rate:.1f}' for rate in rates)}"


def _lines(arms: Sequence[Arm], split: str) -> list[Line]:
    lines = []
    for index, arm in enumerate(arms):
        colour = 1 + index % 6
        seeds = [series(run.evals.get(split, ()), "update", "success_rate") for run in arm.runs]
        if len(seeds) > 1:
            lines += [Line("", points, colour, faint=True) for points in seeds if points]
        lines.append(Line(arm.name, _means(seeds), colour, _last_interval(arm, split), marks=True))
    return lines


def _last_interval(arm: Arm, split: str) -> list[tuple[float, float, float]]:
    """Return Wilson's interval over all seeds' episodes at their last evaluation, where that is of the same update."""
    records = arm.records(split, True)
    updates = {number(record, "update") for record in records}
    pooled = _pooled(records)
    if len(updates) != 1 or len(records) < len(arm.runs) or pooled is None:
        return []
    return [(updates.pop() or 0.0, *pooled)]


def _pooled(records: Sequence[Record]) -> tuple[float, float] | None:
    episodes = [round(number(record, "episodes") or 0.0) for record in records]
    rates = [number(record, "success_rate") or 0.0 for record in records]
    wins = sum(round(rate * count) for rate, count in zip(rates, episodes, strict=True))
    return wilson(wins, sum(episodes)) if records and all(episodes) else None


def _means(seeds: Iterable[Sequence[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Return the mean at every update that all seeds were evaluated at."""
    tables = [dict(points) for points in seeds if points]
    if not tables:
        return []
    common = sorted(set(tables[0]).intersection(*tables[1:]))
    return [(update, mean(table[update] for table in tables)) for update in common]


def _attributes(values: Mapping[str, str]) -> str:
    return " ".join(f'{name}="{value}"' for name, value in values.items())
