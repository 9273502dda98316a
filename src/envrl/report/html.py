"""`RUN/report.html`: one file about a run that needs nothing else, neither a server nor the network.

Every text that comes from a run is escaped where it enters the page, and the page forbids itself scripts and requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from envrl.report import curves
from envrl.report.episodes import episodes_section
from envrl.report.read import (
    Record,
    RunData,
    before_and_after,
    has_scores,
    interval,
    load_run,
    number,
    setting,
    write_whole,
)
from envrl.report.summary import apart, duration, method, score_words, stage_seconds
from envrl.report.svg import figure, percent

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_ARROW = "\N{RIGHTWARDS ARROW}"


def write_report(run: Path) -> Path:
    """Write the page of a run, also of one still going, and return its path.

    Raises `UserError` where the directory is no run or holds nothing yet, `RunError` where the disk is full.
    """
    path = run / "report.html"
    write_whole(path, page(load_run(run)))
    return path


def page(run: RunData) -> str:
    """Return the whole page."""
    styles = "".join(files("envrl.report").joinpath(name).read_text("utf-8") for name in ("chart.css", "page.css"))
    body = "".join(
        section(run)
        for section in (
            _head,
            _headline,
            _learning,
            _by_task,
            _losses,
            _actions,
            _knowledge,
            _time,
            _warm_start,
            _episodes,
            _configuration,
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.name)} · envrl</title><style>{styles}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _head(run: RunData) -> str:
    progress = f"update {run.updates} of {run.updates_planned}"
    status = '<span class="status done">finished</span>' if run.finished else f'<span class="status">{progress}</span>'
    if setting(run.config, "quick"):
        status += '<span class="status">quick run: its figures mean nothing</span>'
    last = run.metrics[-1] if run.metrics else {}
    spent = sum(stage_seconds(run).values())
    facts = {
        "World": setting(run.config, "env.name"),
        "Method": method(run),
        "Policy": setting(run.config, "model.path") or setting(run.config, "model.preset"),
        "Updates": f"{run.updates} of {run.updates_planned}",
        "Episodes played": _count(number(last, "episodes")),
        "Steps in the world": _count(number(last, "env_steps")),
        "Computing time": duration(spent) if spent else None,
        "Seed": setting(run.config, "seed"),
    }
    items = "".join(
        f"<li><b>{name}</b>{escape(str(value))}</li>" for name, value in facts.items() if value not in (None, "")
    )
    return f'<header><h1>{escape(run.name)}{status}</h1><ul class="facts">{items}</ul></header>'


def _headline(run: RunData) -> str:
    if not run.evals:
        return _section("What it learned", "<p>No evaluation has been made yet.</p>")
    cards = []
    for index, (split, records) in enumerate(run.evals.items()):
        chart = curves.split_chart(records, 1 + index % 6, f"Success on {split} before and after")
        cards.append(
            f'<div class="card"><div class="split">{escape(split)}</div>{_change(records)}{chart}'
            f'<p class="soft">{_verdict(records)}{_scores(records)}</p></div>'
        )
    lead = '<p class="soft">Share of games won, before and after reinforcement learning, with 95 % intervals.</p>'
    return _section("What it learned", f'{lead}<div class="grid">{"".join(cards)}</div>')


def _change(records: Sequence[Record]) -> str:
    before, after = before_and_after(records)
    first = number(before, "success_rate") if before else None
    last = number(after, "success_rate") if after else None
    if first is None or last is None:
        only = first if last is None else last
        return f'<div class="headline">{percent(only or 0.0, 1)}</div>'
    points = 100 * (last - first)
    gain = f'<span class="gain {"won" if points > 0 else "lost"}">{points:+.1f} points</span>'
    return (
        f'<div class="headline"><span class="was">{percent(first, 1)} {_ARROW}</span> {percent(last, 1)} {gain}</div>'
    )


def _verdict(records: Sequence[Record]) -> str:
    before, after = before_and_after(records)
    parts = []
    for record, words in ((before, "before"), (after, f"after update {number(after or {}, 'update') or 0:.0f}")):
        if record:
            bounds = interval(record)
            games = f"{number(record, 'episodes') or 0:.0f} games"
            parts.append(f"{words}: {games}" + (f", {_between(bounds)}" if bounds else ""))
    words = "; ".join(parts)
    if before and after:
        words += {
            None: "",
            True: ". The intervals do not touch.",
            False: ". The intervals overlap: this may be chance.",
        }[apart(before, after)]
    elif before:
        words += ". No evaluation after it yet."
    return words[:1].upper() + words[1:]


def _scores(records: Sequence[Record]) -> str:
    """Return the mean score before and after, where it says more than success."""
    if not has_scores(records):
        return ""
    known = [score_words(record) for record in before_and_after(records) if record]
    return f" Mean score {f' {_ARROW} '.join(known)}."


def _learning(run: RunData) -> str:
    chart = _both(lambda width: curves.learning_chart(run, width, 380 if width > 500 else 300))
    if not run.metrics or not chart:
        return ""
    games = sorted({round(number(r, "episodes") or 0.0) for records in run.evals.values() for r in records})
    note = ""
    if games:
        count = f"{games[0]} games" if len(games) == 1 else f"{games[0]} to {games[-1]} games"
        note = f"Dots: evaluations of {count} each, with 95 % intervals. "
    note += "Grey: the training episodes of each update and "
    note += "their running mean over five updates"
    temperatures = setting(run.config, "rollout.temperature"), setting(run.config, "eval.temperature")
    if None not in temperatures and temperatures[0] != temperatures[1]:
        note += f", sampled at temperature {temperatures[0]} where evaluations use {temperatures[1]}"
    return _section("Learning curve", f'<p class="soft">{escape(note)}.</p><div class="card">{chart}</div>')


def _by_task(run: RunData) -> str:
    cards = []
    for index, (split, records) in enumerate(run.evals.items()):
        chart = curves.task_chart(split, records, 1 + index % 6)
        if chart:
            cards.append(f'<div class="card"><h3>{escape(split)}</h3>{_legend(1 + index % 6)}{chart}</div>')
    return _section("Success by type of task", f'<div class="grid">{"".join(cards)}</div>') if cards else ""


def _losses(run: RunData) -> str:
    charts = curves.small_charts(
        [*curves.auxiliary_curves(run.metrics), *curves.UPDATE_CURVES], curves.record_curve(run.metrics, "update")
    )
    return _section("Losses and weights", _small(charts)) if charts else ""


def _actions(run: RunData) -> str:
    """A table of what share of the actions was usable, restricted to admissible commands and free."""
    rows = {
        "in the form of a command": "valid_action_rate",
        "admissible": "admissible_action_rate",
        "went on to imagine an observation": "imagined_observation_rate",
        "episodes won": "success_rate",
    }
    restricted = setting(run.config, "rollout.actions") == "admissible"
    cards = []
    for split, records in run.evals.items():
        before, after = before_and_after(records)
        lines = [
            f"<tr><td>{words}</td><td>{curves.show_change(before, after, key, True)}</td>"
            f"<td>{curves.show_change(before, after, f'free/{key}', True)}</td></tr>"
            for words, key in rows.items()
            if any(number(r or {}, k) is not None for r in (before, after) for k in (key, f"free/{key}"))
        ]
        head = f"<tr><th></th><th>{'restricted' if restricted else 'as trained'}</th><th>free text</th></tr>"
        cards.append(f'<div class="card scroll"><h3>{escape(split)}</h3><table>{head}{"".join(lines)}</table></div>')
    note = "Before and after. Sampling restricted to the admissible commands hides what the model says by itself; so a "
    note += "part of each split is played again without it."
    return _section("Actions", f'<p class="soft">{note}</p><div class="grid">{"".join(cards)}</div>') if cards else ""


def _knowledge(run: RunData) -> str:
    charts = curves.small_charts(curves.EVALUATION_CURVES, curves.split_curve(run))
    note = '<p class="soft">Measured at every evaluation, on transitions of games that it never trained on.</p>'
    return _section("What it knows of its world", note + _small(charts)) if charts else ""


def _time(run: RunData) -> str:
    layers = curves.phases(run)
    if not layers:
        return ""
    chart = _both(lambda width: curves.phase_chart(layers, width, 280 if width > 500 else 250))
    updates = len(next(iter(layers.values())))
    whole = sum(seconds for points in layers.values() for _, seconds in points)
    rows = "".join(
        f'<tr><td><span class="swatch c{1 + index}"></span>{escape(name)}</td><td>{figure(spent / updates)} s</td>'
        f"<td>{percent(spent / whole, 1)}</td></tr>"
        for index, (name, spent) in enumerate((name, sum(s for _, s in points)) for name, points in layers.items())
    )
    table = f"<table><tr><th>phase</th><th>an update</th><th>share</th></tr>{rows}</table>"
    stages = "".join(
        f"<tr><td>{name}</td><td>{duration(seconds)}</td></tr>" for name, seconds in stage_seconds(run).items()
    )
    tables = f'<div class="grid"><div class="card"><h3>Mean seconds of an update</h3>{table}</div>'
    tables += f'<div class="card"><h3>The whole run</h3><table>{stages}</table></div></div>'
    card = f'<div class="card"><h3>Seconds an update</h3>{chart}</div>' if chart else ""
    return _section("Where the time went", card + tables)


def _warm_start(run: RunData) -> str:
    charts = curves.small_charts(
        [*curves.WARM_START_CURVES, *curves.auxiliary_curves(run.warm_start)],
        curves.record_curve(run.warm_start, "step"),
    )
    shared = setting(run.config, "warm_start.path")
    if charts:
        demonstrations = setting(run.config, "warm_start.demonstrations")
        by = setting(run.config, "warm_start.demonstrator")
        note = f"Imitation of {demonstrations} demonstrations by the {by}, before any reinforcement learning."
        return _section("Warm start", f'<p class="soft">{escape(note)}</p>{_small(charts)}')
    if shared:
        return _section("Warm start", f"<p>Shared with another run: <code>{escape(str(shared))}</code></p>")
    return ""


def _episodes(run: RunData) -> str:
    found = episodes_section(run)
    note = (
        "Each action with the probability that the policy gave it; surprise is the loss of the state prediction on "
        "what came, in nats a token. Where the prediction was written out, the words that it missed are underlined "
        "and the wrong ones struck through."
    )
    return _section("Episodes to read", f'<p class="soft">{note}</p><div class="stack">{found}</div>') if found else ""


def _configuration(run: RunData) -> str:
    text = f"<details><summary>config.toml</summary><pre>{escape(run.config_text)}</pre></details>"
    return _section("Configuration", f'<div class="card">{text}</div>')


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _small(charts: Sequence[tuple[curves.Curve, str]]) -> str:
    cards = "".join(
        f'<div class="card"><h3>{escape(curve.title)} <span class="unit">{curve.unit}</span></h3>{chart}</div>'
        for curve, chart in charts
    )
    return f'<div class="grid small">{cards}</div>'


def _both(draw: Callable[[float], str]) -> str:
    """Return a wide chart twice, for wide and for narrow screens: scaled down, its letters would be too small."""
    wide, narrow = draw(1040), draw(400)
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>' if wide else ""


def _legend(colour: int) -> str:
    ring = '<svg class="chart" viewBox="0 0 12 12"><circle cx="6" cy="6" r="4.5" class="ring c0"/></svg>'
    dot = f'<svg class="chart" viewBox="0 0 12 12"><circle cx="6" cy="6" r="5" class="mark c{colour}"/></svg>'
    return f'<p class="legend">{ring} before {dot} after, with 95 % intervals</p>'


def _between(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.1f} to {percent(bounds[1], 1)}"


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
