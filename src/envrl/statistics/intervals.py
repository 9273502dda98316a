"""Intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

Z95 = 1.959963984540054


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion; (0, 1) without trials.

    centre (p + z²/2n) / (1 + z²/n), half-width z √(p(1−p)/n + z²/4n²) / (1 + z²/n) (Wilson, JASA 22, 1927).
    """
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    scale = 1.0 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1.0 - share) / trials + z * z / (4 * trials * trials))
    # Where all or none succeeded the bound on that side is exact, and rounding must not move it.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == trials else min(1.0, centre + half)


def deviation(values: Sequence[float]) -> float:
    """Return the sample's standard deviation, divisor n - 1; 0 for fewer than two values."""
    return stdev(values) if len(values) > 1 else 0.0


def mean_interval(mean: float, deviation: float, count: int, z: float = Z95) -> tuple[float, float]:
    """Return the normal interval of a mean, mean -/+ z s/sqrt(n), for samples that are not small."""
    half = z * deviation / math.sqrt(count)
    return mean - half, mean + half


def pooled(samples: Sequence[tuple[float, float, int]]) -> tuple[float, float, int]:
    """Return (mean, deviation, count) of samples taken together, from the same three figures of each.

    The sum of squares about the common mean is the sum over samples of (n - 1) s^2 + n (mean - common mean)^2.
    """
    total = sum(count for _, _, count in samples)
    centre = math.fsum(mean * count for mean, _, count in samples) / total
    squares = math.fsum((n - 1) * s * s + n * (mean - centre) ** 2 for mean, s, n in samples)
    return centre, math.sqrt(squares / (total - 1)) if total > 1 else 0.0, total


def paired_interval(gained: int, lost: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Return the normal interval of a difference of two proportions on the same trials; (-1, 1) without trials.

    d ± z √(b + c − (b − c)²/n) / n, d = (b − c)/n, of n trials b `gained` and c `lost` (Newcombe, Statistics in
    Medicine 17, 1998, method 1 of paired data).
    """
    if trials == 0:
        return -1.0, 1.0
    difference = (gained - lost) / trials
    half = z * math.sqrt(gained + lost - (gained - lost) ** 2 / trials) / trials
    return difference - half, difference + half


def sign_test(gained: int, lost: int) -> float:
    """Return the exact two-sided p of as many trials gained and lost, or more unequal ones, by a fair coin.

    min(1, 2 Σ_{k ≤ min(b, c)} C(b + c, k) / 2^{b + c}) (McNemar's exact test).
    """
    trials = gained + lost
    tail = sum(math.comb(trials, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**trials)
