"""One SVG that says what a run learned: success before and after, and the way there."""

from __future__ import annotations

from pathlib import Path

from envrl.errors import UserError
from envrl.report.curves import learning_svg
from envrl.report.read import Record, RunData, before_and_after, interval, load_run, number, write_whole
from envrl.report.summary import method
from envrl.report.svg import document, label, percent, placed

_WIDTH, _HEIGHT, _LEFT = 960.0, 400.0, 300.0


def write_picture(run: Path, file: Path) -> None:
    """Write `learning_picture` to a file; raises `UserError` where the run shows nothing or the folder is missing."""
    if not file.parent.is_dir():
        raise UserError(f"cannot write {file}: there is no folder {file.parent}")
    write_whole(file, learning_picture(run))


def learning_picture(run: Path) -> str:
    """Return an SVG document, the figures on the left, the learning curve on the right, on a light ground of its own.

    Raises `UserError` where the directory is no run or was never evaluated.
    """
    data = load_run(run)
    if not data.evals:
        raise UserError(f"{run} holds no evaluation yet, so there is nothing to draw")
    width, height = _WIDTH - _LEFT - 20, _HEIGHT - 62
    curve = placed(learning_svg(data, width, height), _LEFT, 52, width, height)
    return document(_WIDTH, _HEIGHT, _titles(data) + _figures(data) + curve, f"What {data.name} learned")


def _titles(run: RunData) -> str:
    world = run.config.get("env", {}).get("name", "")
    return label(24, 36, f"Games won, {world}" if world else "Games won", "name") + label(
        _LEFT + 46, 36, f"{method(run)}, {run.updates} updates", "tick"
    )


def _figures(run: RunData) -> str:
    parts = [label(24, 58, "before \N{RIGHTWARDS ARROW} after reinforcement learning", "tick")]
    for index, (split, records) in enumerate(list(run.evals.items())[:3]):
        y = 104.0 + 100 * index
        before, after = before_and_after(records)
        rates = [percent(number(record, "success_rate") or 0.0) for record in (before, after) if record]
        parts.append(label(24, y, split, f"name ink c{1 + index}"))
        parts.append(label(24, y + 34, " \N{RIGHTWARDS ARROW} ".join(rates), "big"))
        parts.append(label(24, y + 54, _intervals(before, after), "tick"))
    return "".join(parts)


def _intervals(before: Record | None, after: Record | None) -> str:
    """Return both 95 % intervals and the number of games in a line."""
    bounds = [interval(record) for record in (before, after) if record]
    latest = after or before or {}
    games = f"{number(latest, 'episodes') or 0:.0f} games"
    known = [f"{100 * pair[0]:.0f}\N{EN DASH}{100 * pair[1]:.0f}" for pair in bounds if pair]
    return f"95 % intervals {', '.join(known)}; {games}" if known else games
