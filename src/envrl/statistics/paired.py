"""Differences of two arms whose runs are pairs: the same seed, the same games."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import stats

from envrl.statistics.aggregate import RESAMPLES, Array, Estimate, percentiles

_EXACT = 16
"""Pairs up to which all signs are tried."""


class McNemar(NamedTuple):
    """Pairs that one side alone won, and the exact two-sided p of a split as uneven by a fair coin."""

    gained: int
    lost: int
    p: float


def difference_by_seed(differences_R: Array) -> Estimate:
    """Return the mean difference of R pairs of runs and its 95 % interval by Student's t with R - 1 degrees of freedom.

    d ± t_{0.975, R-1} s / √R; without an interval for one pair.
    """
    value, count = float(np.mean(differences_R)), len(differences_R)
    if count < 2:
        return Estimate(value)
    half = float(stats.t.ppf(0.975, count - 1) * np.std(differences_R, ddof=1) / np.sqrt(count))
    return Estimate(value, value - half, value + half)


def sign_flip_test(differences_R: Array, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Return the two-sided p of a mean difference this far from 0, if each pair's sign were a fair coin's.

    The share of all 2^R signs whose |mean| is at least the one found (Fisher's randomisation test of pairs); of more
    than 16 pairs a sample of signs, the one found among them. With R pairs it is at least 2^(1-R).
    """
    count = len(differences_R)
    found = abs(np.mean(differences_R))
    if count <= _EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=count)))
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), (resamples, count))
        signs[0] = 1.0
    return float(np.mean(np.abs(signs @ differences_R) / count >= found - 1e-12))


def mcnemar(ours_RG: Array, theirs_RG: Array) -> McNemar:
    """Return McNemar's exact test of outcomes (0 or 1) of R pairs of runs on G games, all pairs together.

    Of b games that ours alone won and c that theirs alone won: the binomial test of b in b + c (McNemar, Psychometrika
    12, 1947). It is about these trained runs: another seed may differ by more than it says.
    """
    gained = int(np.sum((ours_RG == 1) & (theirs_RG == 0)))
    lost = int(np.sum((ours_RG == 0) & (theirs_RG == 1)))
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return McNemar(gained, lost, p)


def crossed_interval(splits: Sequence[Array], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Return the mean difference over R pairs of runs and their games, with its 95 % interval for other ones of both.

    `splits` are differences (R, G) of the games of one or several splits, each of which counts the same.

    The pigeonhole bootstrap: seeds and games are drawn with replacement, each by themselves, and a cell counts as often
    as its seed was drawn times its game was (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007).
    It is rather too wide than too narrow. Without an interval for one pair.
    """
    runs = len(splits[0])
    value = float(np.mean([np.mean(split_RG) for split_RG in splits]))
    if runs < 2:
        return Estimate(value)
    rng = np.random.default_rng(seed)
    seeds_BR = rng.multinomial(runs, np.full(runs, 1 / runs), resamples)
    means_B = np.zeros(resamples)
    for split_RG in splits:
        games = split_RG.shape[1]
        games_BG = rng.multinomial(games, np.full(games, 1 / games), resamples)
        means_B += np.sum((seeds_BR @ split_RG) * games_BG, axis=1) / (runs * games) / len(splits)
    return Estimate(value, *percentiles(means_B))
