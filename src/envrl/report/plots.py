"""Charts of lines, stacked areas and intervals, from numbers to SVG text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from envrl.report.scale import nice_ticks, span, spread, thin
from envrl.report.svg import Point, figure, label, path, percent, picture, tag

_LETTER = 8.2
"""Width of a broad letter in the bold 12-pixel label font, pixels."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart; `colour` is 1 to 6 (0 is grey), `intervals` are (x, low, high), `faint` recedes."""

    label: str
    points: Sequence[Point]
    colour: int = 1
    intervals: Sequence[tuple[float, float, float]] = ()
    marks: bool = False
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """A success rate before and after, each as (rate, low, high), with what it is of."""

    name: str
    before: tuple[float, float, float] | None
    after: tuple[float, float, float] | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """The plotting area in pixels and the data that its edges stand for."""

    left: float
    right: float
    top: float
    bottom: float
    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return self.left + (value - self.x0) / ((self.x1 - self.x0) or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y0) / ((self.y1 - self.y0) or 1.0) * (self.bottom - self.top)


def line_chart(
    lines: Sequence[Line],
    *,
    width: float,
    height: float,
    name: str,
    x_name: str = "update",
    rate: bool = False,
    y_range: tuple[float, float] | None = None,
    labels: bool = True,
) -> str:
    """Return lines over a common x: round ticks, intervals as whiskers, labels at the lines' ends, titles on hover."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        return ""
    xs = [x for line in drawn for x, _ in line.points]
    bounds = [bound for line in drawn for _, low, high in line.intervals for bound in (low, high)]
    y0, y1 = y_range or span([y for line in drawn for _, y in line.points] + bounds, rate)
    room = max((len(line.label) for line in drawn if line.label), default=0) * _LETTER + 16 if labels else 12
    frame = Frame(46, width - room, 12, height - 36, min(xs), max(xs), y0, y1)
    show = percent if rate else figure
    parts = [axes(frame, x_name, show)]
    sided = [line for line in drawn if line.intervals]  # moved apart, so that no whisker hides another
    for line in drawn:
        shift = 3.0 * (sided.index(line) - (len(sided) - 1) / 2) if line.intervals else 0.0
        parts.append(_line(frame, line, x_name, show, shift))
    if labels:
        named = [line for line in drawn if line.label]
        ends = [frame.y(line.points[-1][1]) + 4 for line in named]
        for line, y in zip(named, spread(ends, 15, frame.top + 4, frame.bottom), strict=True):
            x = frame.x(line.points[-1][0])
            # A line that ends early keeps its label in the margin, where it covers nothing.
            parts.append(label(max(x, frame.right) + 12, y, line.label, f"label ink c{line.colour}"))
    return picture(width, height, "".join(parts), name)


def axes(frame: Frame, x_name: str, show: Callable[[float], str] = figure) -> str:
    """Return grid lines with the numbers of both axes, and the name of the horizontal one."""
    parts = []
    levels = nice_ticks(frame.y0, frame.y1, 5)
    if show is percent and len({show(tick) for tick in levels}) < len(levels):
        show = _fine_percent
    for tick in levels:
        y = frame.y(tick)
        parts.append(tag("line", x1=frame.left, x2=frame.right, y1=y, y2=y, class_="grid"))
        parts.append(label(frame.left - 7, y + 4, show(tick), "tick", "end"))
    ticks = nice_ticks(frame.x0, frame.x1, max(2, int((frame.right - frame.left) / 70)))
    parts += [
        label(frame.x(tick), frame.bottom + 17, figure(tick), "tick", "middle") for tick in ticks if tick % 1 == 0
    ]
    parts.append(tag("line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom, class_="axis"))
    parts.append(label((frame.left + frame.right) / 2, frame.bottom + 33, x_name, "tick", "middle"))
    return "".join(parts)


def stacked_chart(
    layers: Sequence[tuple[str, Sequence[Point]]], *, width: float, height: float, name: str, unit: str, x_name: str
) -> str:
    """Return areas upon each other, the first lowest; all layers have the same x."""
    layers = [(title, thin(points)) for title, points in layers]
    xs = [x for x, _ in layers[0][1]]
    floors = [[0.0] * len(xs)]
    for _, points in layers:
        floors.append([below + y for below, (_, y) in zip(floors[-1], points, strict=True)])
    room = max(len(title) for title, _ in layers) * _LETTER + 14
    frame = Frame(46, width - room, 12, height - 36, min(xs), max(xs), 0.0, max(floors[-1]) * 1.06 or 1.0)
    parts = [axes(frame, x_name)]
    for index, (title, points) in enumerate(layers):
        upper = [(frame.x(x), frame.y(y)) for x, y in zip(xs, floors[index + 1], strict=True)]
        lower = [(frame.x(x), frame.y(y)) for x, y in zip(xs, floors[index], strict=True)]
        mean = sum(y for _, y in points) / len(points)
        hint = tag("title", escape(f"{title}: {figure(mean)} {unit} on average"))
        parts.append(tag("path", hint, d=path([*upper, *reversed(lower)]) + "Z", class_=f"area c{index + 1}"))
    middles = [frame.y((floors[i][-1] + floors[i + 1][-1]) / 2) + 4 for i in range(len(layers))]
    for index, y in enumerate(spread(middles, 15, frame.top + 4, frame.bottom)):
        parts.append(label(frame.right + 8, y, layers[index][0], f"label ink c{index + 1}"))
    return picture(width, height, "".join(parts), name)


def _fine_percent(rate: float) -> str:
    return percent(rate, 1)


def _line(frame: Frame, line: Line, x_name: str, show: Callable[[float], str], shift: float) -> str:
    points = thin(line.points)
    colour = f"c{line.colour}"
    parts = []
    for x, low, high in line.intervals:
        px = frame.x(x) + shift
        parts.append(tag("line", x1=px, x2=px, y1=frame.y(low), y2=frame.y(high), class_=f"whisker {colour}"))
    pixels = [(frame.x(x) + shift, frame.y(y)) for x, y in points]
    if len(pixels) > 1:
        parts.append(tag("path", d=path(pixels), class_=f"line {colour}{' faint' if line.faint else ''}"))
    spans = {x: f" ({show(low)} to {show(high)})" for x, low, high in line.intervals}
    for (x, y), (px, py) in zip(points, pixels, strict=True):
        words = f"{line.label or ''} {x_name} {figure(x)}: {show(y)}{spans.get(x, '')}".strip()
        if line.faint:
            continue
        if line.marks or len(pixels) == 1:
            parts.append(tag("circle", cx=px, cy=py, r=4, class_=f"mark {colour}"))
        parts.append(tag("circle", tag("title", escape(words)), cx=px, cy=py, r=8, class_="hit"))
    return "".join(parts)


def pair_chart(pairs: Sequence[Pair], *, width: float, colour: int, name: str, words: bool = True) -> str:
    """Return a row for each pair on an axis from 0 to 1: a ring before, a dot after, whiskers for their intervals.

    With `words` each row has its name and figures above it.
    """
    above = 20.0 if words else 4.0
    row, top = above + 26.0, 4.0
    frame = Frame(4, width - 14, top, top + row * len(pairs), 0.0, 1.0, 0.0, 1.0)
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = frame.x(tick)
        parts.append(tag("line", x1=x, x2=x, y1=frame.top, y2=frame.bottom, class_="grid"))
        anchor = {0.0: "start", 1.0: "end"}.get(tick, "middle")
        parts.append(label(x + (12 if tick == 1.0 else 0), frame.bottom + 17, percent(tick), "tick", anchor))
    for index, pair in enumerate(pairs):
        base = top + row * index
        if words:
            values = " \N{RIGHTWARDS ARROW} ".join(percent(rate[0]) for rate in (pair.before, pair.after) if rate)
            parts.append(label(frame.left, base + 15, pair.name, "label halo"))
            parts.append(label(frame.right, base + 15, values + pair.note, "tick halo", "end"))
        if pair.before:
            parts.append(_whisker(frame, pair.before, base + above + 6, f"{pair.name} before".strip(), "ring", "c0"))
        if pair.after:
            parts.append(
                _whisker(frame, pair.after, base + above + 16, f"{pair.name} after".strip(), "mark", f"c{colour}")
            )
    return picture(width, frame.bottom + 24, "".join(parts), name)


def _whisker(frame: Frame, rate: tuple[float, float, float], y: float, what: str, kind: str, colour: str) -> str:
    middle, low, high = rate
    title = tag("title", escape(f"{what}: {percent(middle, 1)} ({percent(low, 1)} to {percent(high, 1)})"))
    bar = tag("line", x1=frame.x(low), x2=frame.x(high), y1=y, y2=y, class_=f"whisker {colour}")
    return tag("g", title + bar + tag("circle", cx=frame.x(middle), cy=y, r=5, class_=f"{kind} {colour}"))
