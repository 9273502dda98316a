"""What the page says of a run before any episode is opened, as plain data for the browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envrl.report import curves
from envrl.report.episode_index import EpisodeFile, Row
from envrl.report.failures import CLASSES
from envrl.report.read import Record, RunData, before_and_after, has_scores, interval, number, setting
from envrl.report.summary import apart, duration, method, score_words, stage_seconds

_ACTIONS = {
    "in the form of a command": "valid_action_rate",
    "admissible": "admissible_action_rate",
    "went on to imagine an observation": "imagined_observation_rate",
    "episodes won": "success_rate",
}


def overview(run: RunData) -> dict[str, Any]:
    """Return a run's facts, results and charts; a figure that is missing is None."""
    return {
        "name": run.name,
        "finished": run.finished,
        "status": "finished" if run.finished else f"update {run.updates} of {run.updates_planned}",
        "quick": bool(setting(run.config, "quick")),
        "facts": [[name, str(value)] for name, value in _facts(run).items() if value not in (None, "")],
        "results": [_result(split, records, index) for index, (split, records) in enumerate(run.evals.items())],
        "learning": curves.learning_chart(run),
        "learningNote": _learning_note(run),
        "updates": curves.update_charts(run),
        "knowledge": curves.evaluation_charts(run),
        "actions": [_actions(split, records) for split, records in run.evals.items()],
        "restricted": setting(run.config, "rollout.actions") == "admissible",
        "phases": [[name, points] for name, points in curves.phases(run).items()],
        "stages": [[name, duration(seconds)] for name, seconds in stage_seconds(run).items() if seconds],
        "warmStart": curves.warm_start_charts(run),
        "warmStartNote": _warm_start_note(run),
        "config": run.config_text,
        "failures": CLASSES,
    }


def episode_rows(rows: Sequence[tuple[EpisodeFile, Row]]) -> dict[str, Any]:
    """Return the list of episodes in columns' order, with each file, task, goal and kind written once."""
    names: list[dict[str, int]] = [{}, {}, {}]
    files: dict[str, list[Any]] = {}
    places: dict[str, int] = {}

    def place(of: dict[str, int], text: str) -> int:
        return of.setdefault(text, len(of))

    table = []
    for file, row in rows:
        if file.name not in files:
            places[file.name] = len(files)
            files[file.name] = [file.name, file.update, file.split]
        texts = [place(of, text) for of, text in zip(names, (row.task, row.kind, row.goal), strict=True)]
        figures = [row.member, int(row.success), row.turns, row.score, row.failure, int(row.free)]
        table.append([places[file.name], row.offset, *texts, *figures])
    tasks, kinds, goals = (list(each) for each in names)
    return {"files": list(files.values()), "tasks": tasks, "kinds": kinds, "goals": goals, "rows": table}


def _facts(run: RunData) -> dict[str, Any]:
    last = run.metrics[-1] if run.metrics else {}
    spent = sum(stage_seconds(run).values())
    return {
        "World": setting(run.config, "env.name"),
        "Method": method(run),
        "Policy": setting(run.config, "model.path") or setting(run.config, "model.preset"),
        "Updates": f"{run.updates} of {run.updates_planned}",
        "Episodes played": _count(number(last, "episodes")),
        "Steps in the world": _count(number(last, "env_steps")),
        "Computing time": duration(spent) if spent else None,
        "Seed": setting(run.config, "seed"),
    }


def _result(split: str, records: Sequence[Record], index: int) -> dict[str, Any]:
    before, after = before_and_after(records)
    kinds: dict[str, list[Any]] = {}
    for place, record in enumerate((before, after)):
        found = record.get("by_task") if record else None
        for kind, each in (found if isinstance(found, Mapping) else {}).items():
            if isinstance(each, Mapping):
                kinds.setdefault(str(kind), [None, None])[place] = _rate(each)
    return {
        "split": split,
        "colour": 1 + index % 6,
        "before": _rate(before),
        "after": _rate(after),
        "verdict": _verdict(before, after),
        "scores": [score_words(record) for record in (before, after) if record] if has_scores(records) else [],
        "kinds": [[kind, *pair] for kind, pair in sorted(kinds.items())],
    }


def _rate(record: Record | None) -> dict[str, Any] | None:
    rate = number(record, "success_rate") if record else None
    if record is None or rate is None:
        return None
    low, high = interval(record) or (rate, rate)
    return {
        "rate": rate,
        "low": low,
        "high": high,
        "episodes": number(record, "episodes"),
        "update": number(record, "update"),
    }


def _verdict(before: Record | None, after: Record | None) -> str:
    if before and after:
        return {
            None: "",
            True: "The intervals do not touch.",
            False: "The intervals overlap: this may be chance.",
        }[apart(before, after)]
    return "No evaluation after it yet." if before else ""


def _learning_note(run: RunData) -> str:
    counts = sorted({round(number(r, "episodes") or 0.0) for records in run.evals.values() for r in records})
    note = ""
    if counts:
        least, most = counts[0], counts[-1]
        count = f"{least} to {most} episodes" if most > least else f"{most} episode{'s' * (most != 1)}"
        note = f"Dots: evaluations of {count} each, with 95 % intervals. "
    note += "Grey: the training episodes of each update and their running mean over five updates"
    temperatures = setting(run.config, "rollout.temperature"), setting(run.config, "eval.temperature")
    if None not in temperatures and temperatures[0] != temperatures[1]:
        note += f", sampled at temperature {temperatures[0]} where evaluations use {temperatures[1]}"
    return f"{note}."


def _actions(split: str, records: Sequence[Record]) -> dict[str, Any]:
    """Return for each kind of usable action its share before and after, as trained and free."""
    before, after = before_and_after(records)
    rows = []
    for words, key in _ACTIONS.items():
        pairs = [[number(record or {}, name) for record in (before, after)] for name in (key, f"free/{key}")]
        if any(value is not None for pair in pairs for value in pair):
            rows.append([words, *pairs])
    return {"split": split, "rows": rows}


def _warm_start_note(run: RunData) -> str:
    if run.warm_start:
        demonstrations = setting(run.config, "warm_start.demonstrations")
        by = setting(run.config, "warm_start.demonstrator")
        return f"Imitation of {demonstrations} demonstrations by the {by}, before any reinforcement learning."
    shared = setting(run.config, "warm_start.path")
    if not shared:
        return ""
    return (
        f"Shared with the run that made it ({shared}), which also played the evaluation before RL: 'envrl view' with "
        "both runs shows the episodes of both."
    )


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
