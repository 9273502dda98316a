"""From data to the ends, ticks and places of a chart: pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from envrl.report.svg import Point


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at most `most` + 1 round numbers, a step of 1, 2 or 5 times a power of ten apart, within [low, high]."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first <= most:
            break
    return [index * step for index in range(first, last + 1)]


def span(values: Sequence[float], rate: bool = False) -> tuple[float, float]:
    """Return the range of an axis: from 0 where nothing is negative, unless values hardly differ; a rate ends at 1."""
    low, high = min(values), max(values)
    if rate:
        return 0.0, min(1.0, 1.1 * high) or 1.0
    if low >= 0 and high - low > 0.15 * high:
        low = 0.0
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if low == 0 else low - margin), high + margin


def thin(points: Sequence[Point], most: int = 240) -> list[Point]:
    """Return at most `most` points: the means of that many runs of neighbours."""
    if len(points) <= most:
        return list(points)
    bounds = [len(points) * index // most for index in range(most + 1)]
    runs = [points[start:stop] for start, stop in pairwise(bounds)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def running_mean(points: Sequence[Point], reach: int = 2) -> list[Point]:
    """Return each point with the mean of itself and up to `reach` neighbours on either side as its y."""
    smooth = []
    for index, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, index - reach) : index + reach + 1]]
        smooth.append((x, sum(near) / len(near)))
    return smooth


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the places moved apart, in their order, to be at least `gap` from each other and within [low, high]."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for before, index in zip([None, *order], order, strict=False):
        moved[index] = max(moved[index], low if before is None else moved[before] + gap)
    ceiling = high
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved
