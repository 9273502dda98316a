"""What a comparison of pairs could have found: the smallest difference, and the number of seeds for a given one."""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Any

from scipy import optimize, stats

LEVEL, POWER = 0.05, 0.8
"""The test's chance of finding a difference where there is none, and of finding one that is there."""
_MOST = 10_000


def power(difference: float, deviation: float, seeds: int, level: float = LEVEL) -> float:
    """Return the chance that a two-sided paired t-test finds a difference of means.

    `deviation` is that of the differences of pairs. P(T > t_{1-α/2, n-1}) for T of the non-central t distribution with
    n - 1 degrees of freedom and d √n / s; the far tail is left out (Cohen, Statistical Power Analysis, 1988).
    """
    freedom = seeds - 1
    centre = abs(difference) / deviation * math.sqrt(seeds)
    return float(stats.nct.sf(stats.t.ppf(1 - level / 2, freedom), freedom, centre))


def minimum_detectable_difference(deviation: float, seeds: int, level: float = LEVEL) -> float | None:
    """Return the difference that a paired t-test of so many seeds finds with a chance of 80 %.

    None where it cannot be said: one seed, or pairs without any deviation.
    """
    if seeds < 2 or deviation <= 0:
        return None
    high = deviation  # widened until it is found often enough: a larger start is beyond the distribution's numerics
    while power(high, deviation, seeds, level) < POWER:
        high *= 1.5
    found: Any = optimize.brentq(lambda d: power(d, deviation, seeds, level) - POWER, 1e-6 * deviation, high)
    return float(found)


def seeds_needed(difference: float, deviation: float, level: float = LEVEL) -> int | None:
    """Return the fewest pairs of seeds with which a paired t-test finds a difference with a chance of 80 %.

    None where it cannot be said: no difference or no deviation, or more than 10,000.
    """
    if not difference or deviation <= 0:
        return None
    found = bisect_left(range(2, _MOST + 1), True, key=lambda n: power(difference, deviation, n, level) >= POWER) + 2
    return found if found <= _MOST else None
