"""Figures of a comparison for a paper, by matplotlib: curves, ends, differences, performance profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from envrl.errors import RunError
from envrl.report.comparison import PairResult, SplitResult, profiles
from envrl.report.measures import Metric
from envrl.report.style import COLOURS, DATES, STYLE
from envrl.report.tables import shortened
from envrl.statistics.aggregate import Estimate, mean, stratified_bootstrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("pdf", "svg", "png")
_WIDTH, _HEIGHT = 4.2, 3.0
"""Inches of a panel."""


def write_figures(results: Sequence[SplitResult], metric: Metric, folder: Path) -> None:
    """Write all figures into a folder, each as PDF, SVG and PNG; that of differences where there are any."""
    differing = [result for result in results if result.pairs]
    for form in FORMATS:
        _write(results, metric, _curves, folder / f"curves.{form}")
        _write(results, metric, _ends, folder / f"ends.{form}", lambda r: [arm.name for arm in r.arms])
        _write(results, metric, _profiles, folder / f"profiles.{form}")
        if differing:
            _write(
                differing, metric, _differences, folder / f"differences.{form}", lambda r: list(map(_title, r.pairs))
            )


def write_curves(results: Sequence[SplitResult], metric: Metric, file: Path) -> None:
    """Write the learning curves alone, in the format that the file's name ends with."""
    _write(results, metric, _curves, file)


def _write(
    results: Sequence[SplitResult],
    metric: Metric,
    draw: Callable[[Axes, SplitResult, Metric], None],
    file: Path,
    rows: Callable[[SplitResult], list[str]] = lambda _: [],
) -> None:
    """Write a figure with a panel a split; where `rows` are the same in all, the first alone names them."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    named = [rows(result) for result in results]
    height = max(_HEIGHT, 1.0 + 0.5 * max(map(len, named)))
    with rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH * len(results), height), layout="constrained")
        FigureCanvasAgg(figure)
        same = bool(named[0]) and all(names == named[0] for names in named)
        panels = figure.subplots(1, len(results), squeeze=False, sharey=same)[0]
        for axes, result in zip(panels, results, strict=True):
            draw(axes, result, metric)
            axes.set_title(result.split, loc="left", fontsize=10)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
        try:
            figure.savefig(file, metadata=DATES.get(file.suffix), bbox_inches="tight")
        except OSError as error:
            raise RunError(f"cannot write {file}: {error.strerror}") from error


def _curves(axes: Axes, result: SplitResult, metric: Metric) -> None:
    """Draw the mean over seeds with its 95 % bootstrap band, and each seed thin."""
    from matplotlib.ticker import MaxNLocator

    for colour, arm in zip(_cycle(), result.arms, strict=False):
        shared = sorted(set.intersection(*[{x for x, _ in curve} for curve in arm.curves.values()]))
        tables = [dict(curve) for curve in arm.curves.values()]
        estimates = [stratified_bootstrap(np.array([[t[x]] for t in tables]), mean, resamples=2000) for x in shared]
        scale = _scale(metric)
        axes.plot(
            shared, [scale * each.value for each in estimates], color=colour, label=_named(arm.name), linewidth=1.6
        )
        if len(tables) > 1:
            bounds = [(scale * (e.low or 0.0), scale * (e.high or 0.0)) for e in estimates]
            low, high = zip(*bounds, strict=True)
            axes.fill_between(shared, low, high, color=colour, alpha=0.18, linewidth=0)
            for table in tables:
                axes.plot(shared, [scale * table[x] for x in shared], color=colour, alpha=0.3, linewidth=0.6)
    axes.set_xlabel("update")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(_axis(metric))


def _ends(axes: Axes, result: SplitResult, metric: Metric) -> None:
    """Draw mean and interquartile mean of each arm with their intervals, and each seed as a small dot."""
    places = np.arange(len(result.arms))[::-1]
    scale = _scale(metric)
    for place, colour, arm in zip(places, _cycle(), result.arms, strict=False):
        _point(axes, arm.mean, place + 0.12, colour, scale, "o", "mean" if place == places[0] else "")
        _point(axes, arm.iqm, place - 0.12, colour, scale, "D", "interquartile mean" if place == places[0] else "")
        values = [scale * value for value in arm.by_seed.values()]
        axes.plot(values, [place - 0.3] * len(values), ".", color=colour, alpha=0.5, markersize=3)
    _rows(axes, places, [_named(arm.name) for arm in result.arms])
    axes.set_xlabel(_axis(metric, " after RL"))


def _differences(axes: Axes, result: SplitResult, metric: Metric) -> None:
    """Draw the difference of each pair of arms, by seed and over other seeds and games."""
    places = np.arange(len(result.pairs))[::-1]
    scale = _scale(metric)
    for place, pair in zip(places, result.pairs, strict=True):
        first = place == places[0]
        _point(axes, pair.by_seed, place + 0.12, COLOURS[0], scale, "o", "by seed" if first else "")
        if pair.crossed is not None:
            _point(axes, pair.crossed, place - 0.12, COLOURS[1], scale, "s", "other seeds and games" if first else "")
    axes.axvline(0, color="black", linewidth=0.8)
    _rows(axes, places, [_title(pair) for pair in result.pairs])
    axes.set_xlabel(f"difference in {metric.name.replace('_', ' ')}{', points' if metric.is_rate else ''}")


def _profiles(axes: Axes, result: SplitResult, metric: Metric) -> None:
    """Draw the share of runs above each level, with its 95 % band."""
    levels, found = profiles(result)
    scale = _scale(metric)
    x = [scale * level for level in levels]
    for colour, (name, (shares, band)) in zip(_cycle(), found.items(), strict=False):
        axes.step(x, shares, where="post", color=colour, label=_named(name), linewidth=1.4)
        if band is not None:
            axes.fill_between(x, *band, step="post", color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel(f"level of {_axis(metric)}")
    axes.set_ylabel("share of runs above")


def _point(axes: Axes, estimate: Estimate, y: float, colour: str, scale: float, marker: str, label: str) -> None:
    value = scale * estimate.value
    if estimate.low is not None and estimate.high is not None:
        axes.plot([scale * estimate.low, scale * estimate.high], [y, y], color=colour, linewidth=1.4)
    axes.plot([value], [y], marker, color=colour, markersize=4.5, label=label or "_")


def _rows(axes: Axes, places: Any, names: Sequence[str]) -> None:
    axes.set_yticks(list(places), list(names))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", visible=False)


def _title(pair: PairResult) -> str:
    return f"{_named(pair.name)} \N{MINUS SIGN}\n{_named(pair.against)}"


def _named(name: str) -> str:
    return "\n".join(wrap(shortened(name), 30))


def _scale(metric: Metric) -> float:
    return 100.0 if metric.is_rate else 1.0


def _axis(metric: Metric, when: str = "") -> str:
    return f"{metric.name.replace('_', ' ')}{when}{', %' if metric.is_rate else ''}"


def _cycle() -> Iterator[str]:
    while True:
        yield from COLOURS
