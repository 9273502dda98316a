"""One picture that says what a run learned: success before and after, and the way there; drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from envrl.errors import RunError, UserError
from envrl.report.curves import learning_lines
from envrl.report.read import Record, RunData, before_and_after, interval, load_run, number
from envrl.report.style import COLOURS, DATES, STYLE
from envrl.report.summary import method

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "#6b7280"
_SPLITS = 3
"""Splits for whose figures there is room."""
_LONGEST = 30
"""Letters of a split's name."""


def write_picture(run: Path, file: Path) -> None:
    """Write the picture, in the format that the file's name ends with.

    Raises `UserError` where the directory is no run or was never evaluated, or there is no folder for the file.
    """
    data = load_run(run)
    if not data.evals:
        raise UserError(f"{run} holds no evaluation yet, so there is nothing to draw")
    if not file.parent.is_dir():
        raise UserError(f"cannot write {file}: there is no folder {file.parent}")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        words, curve = figure.subplots(1, 2, width_ratios=(1, 2.2))
        _figures(words, data)
        _curve(curve, data)
        try:
            figure.savefig(file, metadata=DATES.get(file.suffix))
        except OSError as error:
            raise RunError(f"cannot write {file}: {error.strerror}") from error


def _figures(axes: Axes, run: RunData) -> None:
    """Write success before and after RL on each split, in large letters."""
    world = run.config.get("env", {}).get("name", "")
    axes.axis("off")
    axes.set_title(f"Games won, {_cut(str(world))}" if world else "Games won", loc="left", fontsize=12)
    axes.text(0, 0.97, "before \N{RIGHTWARDS ARROW} after reinforcement learning", color=_GREY, va="top")
    for index, (split, records) in enumerate(list(run.evals.items())[:_SPLITS]):
        y = 0.84 - 0.31 * index
        before, after = before_and_after(records)
        rates = [f"{100 * (number(each, 'success_rate') or 0.0):.0f} %" for each in (before, after) if each]
        axes.text(0, y, _cut(split), color=COLOURS[index], weight="bold", va="top")
        axes.text(0, y - 0.07, " \N{RIGHTWARDS ARROW} ".join(rates), fontsize=20, va="top")
        axes.text(0, y - 0.2, _intervals(before, after), color=_GREY, fontsize=8, va="top")


def _curve(axes: Axes, run: RunData) -> None:
    """Draw success over updates: the training episodes, their running mean, and each split with its intervals."""
    from matplotlib.ticker import MaxNLocator

    for line in learning_lines(run):
        colour = COLOURS[(line.colour - 1) % len(COLOURS)] if line.colour else _GREY
        x, y = zip(*line.points, strict=True) if line.points else ((), ())
        axes.plot(
            x,
            [100 * value for value in y],
            "o-" if line.marks else "-",
            color=colour,
            alpha=0.35 if line.faint else 1.0,
            linewidth=0.8 if line.faint else 1.6,
            label=_cut(line.label) or "_",
        )
        for update, low, high in line.intervals:
            axes.plot([update, update], [100 * low, 100 * high], color=colour, linewidth=1.2)
    axes.set_ylim(0, 100)
    axes.set_xlabel("update")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("success, %")
    axes.set_title(f"{method(run)}, {run.updates} updates", loc="left", fontsize=9, color=_GREY)
    axes.legend(loc="upper left")


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}…"


def _intervals(before: Record | None, after: Record | None) -> str:
    """Return both 95 % intervals and the number of episodes in a line."""
    bounds = [interval(record) for record in (before, after) if record]
    latest = after or before or {}
    played = f"{number(latest, 'episodes') or 0:.0f} episodes"
    known = [f"{100 * pair[0]:.0f}\N{EN DASH}{100 * pair[1]:.0f}" for pair in bounds if pair]
    return f"95 % intervals {', '.join(known)}; {played}" if known else played
