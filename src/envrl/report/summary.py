"""What a run learned, in a few plain lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from envrl.registry import KINDS, find
from envrl.report.read import (
    WEIGHED,
    Record,
    RunData,
    before_and_after,
    has_scores,
    interval,
    load_run,
    number,
    setting,
    title,
    weighed,
)


def summarize(run: Path) -> str:
    """Return success before and after with 95 % intervals for each split, how long it took, and where the report is.

    Raises `UserError` as `load_run` does.
    """
    data = load_run(run)
    quick = ["a quick run: its figures mean nothing"] if setting(data.config, "quick") else []
    return "\n".join([*quick, *learned(data), took(data), f"report: {run / 'report.html'}"])


def learned(run: RunData) -> list[str]:
    """Return for each split its success before RL and at the last evaluation after it; its score where that differs."""
    if not run.evals:
        return ["no evaluation yet"]
    width = max(map(len, run.evals))
    lines = []
    for split, records in run.evals.items():
        before, after = before_and_after(records)
        rates = [_rate(record) for record in (before, after) if record]
        latest = after or before
        played = f"{number(latest, 'episodes') or 0:.0f} episodes" if latest else ""
        when = f", after {number(after, 'update') or 0:.0f} updates" if after else ", before any update"
        lines.append(f"{split:<{width}}  {' -> '.join(rates)}   {played}{when}")
        if has_scores(records):
            scores = [score_words(record) for record in (before, after) if record]
            lines.append(f"{'':<{width}}  score {' -> '.join(scores)}")
    return lines


def took(run: RunData) -> str:
    """Return how long the stages took, from the seconds that their records hold."""
    parts = [f"{name} {duration(seconds)}" for name, seconds in stage_seconds(run).items() if seconds]
    whole = duration(sum(stage_seconds(run).values()))
    return f"took {whole}: {', '.join(parts)}" if parts else f"took {whole}"


def stage_seconds(run: RunData) -> dict[str, float]:
    """Return the seconds spent in the warm start's steps, the updates, and the evaluations."""
    evals = (record for records in run.evals.values() for record in records)
    return {"warm start": _total(run.warm_start), "updates": _total(run.metrics), "evaluations": _total(evals)}


def duration(seconds: float) -> str:
    """Return 384 as "6 min 24 s"."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def apart(before: Record, after: Record) -> bool | None:
    """Return whether the two 95 % intervals do not touch; None where one is missing."""
    first, last = interval(before), interval(after)
    if not first or not last:
        return None
    return first[1] < last[0] or last[1] < first[0]


def method(run: RunData) -> str:
    """Return the algorithm in a phrase, as configured: "GRPO + state prediction 0.2 + inverse dynamics 0.05"."""
    estimator = setting(run.config, "objective.estimator")
    parts = [title("estimator", str(estimator))] if estimator else []
    learned = weighed(run.config)
    parts += [_auxiliary(name, table) for name, table in learned.items()]
    for kind in (kind for kind in WEIGHED if kind != "auxiliary"):
        parts += [f"{title(kind, name)} {table['weight']:g}" for name, table in weighed(run.config, kind).items()]
    if any(table.get("placebo") is True for table in learned.values()):
        parts.append("placebo: exchanged targets")
    return " + ".join(parts)


def _auxiliary(name: str, table: Mapping[str, Any]) -> str:
    """Return an auxiliary objective in a phrase: "inverse dynamics 0.1 (choices, all tokens)"."""
    own = find("auxiliary", name).settings if name in KINDS["auxiliary"].built_in else {}
    ways = [key for key, of in own.items() if of.default is False and table.get(key) is True]
    ways += ["all tokens"] * (table.get("tokens") == "all")
    usual = find("auxiliary", name).traits.get("defaults", {}) if own else {}
    chosen = table.get("select", "all")
    ways += [_SELECTED.get(chosen, chosen)] * (chosen != usual.get("select", "all"))
    ways += [f"reservoir of {size}" for size in [table.get("reservoir")] if size]
    return f"{title('auxiliary', name)} {table['weight']:g}" + (f" ({', '.join(ways)})" if ways else "")


_SELECTED = {"novel": "novel first", "uncertain": "uncertain first", "failures": "failures alone", "all": "all"}


def score_words(record: Record) -> str:
    """Return an evaluation's mean score with its interval: `0.565 (0.540 to 0.590)`."""
    bounds = interval(record, "score_ci95")
    words = f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else ""
    return f"{number(record, 'score') or 0.0:.3f}{words}"


def _total(records: Iterable[Record]) -> float:
    return sum(number(record, "seconds > total") or 0.0 for record in records)


def _rate(record: Record) -> str:
    bounds = interval(record)
    words = f" ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})" if bounds else ""
    return f"{100 * (number(record, 'success_rate') or 0.0):.1f} %{words}"
