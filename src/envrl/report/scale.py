"""Long lines made short, and smooth ones: pure functions of points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]


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
