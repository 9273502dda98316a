"""Arms compared: what each reached over its seeds, and how pairs of arms differ by seed and by game."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

import numpy as np

from envrl.errors import UserError
from envrl.report.compare import Arm
from envrl.report.measures import SUCCESS, UPDATES, Metric, steps_at
from envrl.report.read import Games, RunData, setting
from envrl.report.results import outcomes_of
from envrl.statistics.aggregate import (
    Array,
    Estimate,
    area_under_curve,
    first_reaching,
    improvement_interval,
    interquartile_mean,
    performance_profile,
    profile_band,
    stratified_bootstrap,
)
from envrl.statistics.aggregate import mean as mean_of
from envrl.statistics.paired import McNemar, crossed_interval, difference_by_seed, mcnemar, sign_flip_test
from envrl.statistics.power import minimum_detectable_difference, seeds_needed

Points = Sequence[tuple[float, float]]
TOGETHER = "all splits"
"""What stands in place of a split for all of them together."""
_LEVELS = 101
"""Levels at which a performance profile is worked out."""


@dataclass(frozen=True, slots=True)
class Reached:
    """How soon an arm's runs reached a level: how many did, and medians over all, None where fewer than half did."""

    level: float
    runs: int
    updates: float | None
    env_steps: float | None


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What an arm reached on a split: by seed at `update`, over seeds, and on the way there."""

    name: str
    update: int
    by_seed: Mapping[int, float]
    scores_RT: Array
    """The same by seed and split."""
    before: float | None
    mean: Estimate
    iqm: Estimate
    area: Estimate
    reached: Reached
    curves: Mapping[int, Points]
    outcomes: Mapping[int, tuple[Games, ...]]
    unknown: str
    """Why the outcomes of single games are not known; empty where they are."""


@dataclass(frozen=True, slots=True)
class PairResult:
    """How an arm differs from another on a split."""

    name: str
    against: str
    seeds: tuple[int, ...]
    by_seed: Estimate
    p_by_seed: float
    deviation: float
    detectable: float | None
    needed: int | None
    improvement: Estimate
    by_game: McNemar | None
    crossed: Estimate | None
    unknown: str


@dataclass(frozen=True, slots=True)
class SplitResult:
    """All of it for a split, or for the metric of updates."""

    split: str
    arms: tuple[ArmResult, ...]
    pairs: tuple[PairResult, ...]


def compare(
    arms: Sequence[Arm], metric: Metric, splits: Sequence[str], level: float | None, pairs: Sequence[tuple[int, int]]
) -> list[SplitResult]:
    """Compare arms on each split, and on all together, of which each counts the same.

    `pairs` are the indices of (arm, against); a level of None is the first arm's end. Raises `UserError` where no arm
    has the metric after an update.
    """
    names = [UPDATES] if metric.of_updates else splits
    curves = {split: [{_seed(run): metric.curve(run, split) for run in arm.runs} for arm in arms] for split in names}
    known = [split for split in names if any(_last(by_seed) is not None for by_seed in curves[split])]
    if not known:
        raise UserError(f"no run has '{metric.name}' after an update yet, so there is nothing to compare")
    groups = [*([split] for split in known), *([known] if len(known) > 1 else [])]
    results = []
    for group in groups:
        joined = [_joined([curves[split][index] for split in group]) for index in range(len(arms))]
        there = [index for index in range(len(arms)) if _last(joined[index]) is not None]
        if not there:
            continue
        aim = level if level is not None else _ends(metric, joined[there[0]])
        parts = {index: [curves[split][index] for split in group] for index in there}
        found = {index: _arm_result(arms[index], metric, group, parts[index], joined[index], aim) for index in there}
        compared = [_pair(found[a], found[b]) for a, b in pairs if a in found and b in found]
        name = group[0] if len(group) == 1 else TOGETHER
        results.append(SplitResult(name, tuple(found.values()), tuple(pair for pair in compared if pair)))
    return results


def _joined(parts: Sequence[Mapping[int, Points]]) -> dict[int, Points]:
    """Return each seed's mean over splits, at the updates at which it has all of them."""
    found: dict[int, Points] = {}
    for seed in parts[0]:
        tables = [dict(part[seed]) for part in parts]
        common = sorted(set.intersection(*map(set, tables)))
        found[seed] = [(x, mean(table[x] for table in tables)) for x in common]
    return found


def _arm_result(
    arm: Arm,
    metric: Metric,
    splits: Sequence[str],
    parts: Sequence[Mapping[int, Points]],
    joined: Mapping[int, Points],
    level: float,
) -> ArmResult:
    """Return what an arm reached; `parts` are its curves on each split, `joined` their means."""
    update = _last(joined)
    assert update is not None
    until = {seed: [(x, y) for x, y in curve if x <= update] for seed, curve in joined.items()}
    scores_RT = np.array([[metric.end(part[seed], update) for part in parts] for seed in joined])
    cut = [{seed: [(x, y) for x, y in part[seed] if x <= update] for seed in joined} for part in parts]
    areas_RT = np.array([[area_under_curve(part[seed]) for part in cut] for seed in joined])
    first = [dict(curve).get(0.0) for curve in joined.values()]
    one = [0] * len(splits)  # the same runs play all splits
    before = [value for value in first if value is not None]
    outcomes, unknown = _outcomes(arm, metric, splits, int(update))
    return ArmResult(
        arm.name,
        int(update),
        dict(zip(joined, map(float, scores_RT.mean(axis=1)), strict=True)),
        scores_RT,
        mean(before) if len(before) == len(first) else None,
        stratified_bootstrap(scores_RT, mean_of, one),
        stratified_bootstrap(scores_RT, interquartile_mean, one),
        stratified_bootstrap(areas_RT, mean_of, one),
        _reached(arm, until, level),
        until,
        outcomes,
        unknown,
    )


def _last(curves: Mapping[int, Points]) -> float | None:
    """Return the last update after the start at which all runs have a value."""
    common = set.intersection(*[{x for x, _ in curve if x > 0} for curve in curves.values()])
    return max(common, default=None)


def _ends(metric: Metric, curves: Mapping[int, Points]) -> float:
    update = _last(curves)
    assert update is not None
    return mean(metric.end(curve, update) for curve in curves.values())


def _reached(arm: Arm, curves: Mapping[int, Points], level: float) -> Reached:
    runs = {_seed(run): run for run in arm.runs}
    at = {seed: first_reaching(curve, level) for seed, curve in curves.items()}
    steps = [None if x is None else steps_at(runs[seed], x) for seed, x in at.items()]
    return Reached(level, sum(x is not None for x in at.values()), _median(list(at.values())), _median(steps))


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median, a missing value counted as larger than all; None where it would be one of these."""
    middle = median(float("inf") if value is None else value for value in values)
    return None if middle == float("inf") else middle


def _outcomes(arm: Arm, metric: Metric, splits: Sequence[str], update: int) -> tuple[dict[int, tuple[Games, ...]], str]:
    """Return each seed's outcomes game by game, split by split, or why they are not known."""
    if metric.name != SUCCESS:
        return {}, f"'{metric.name}' is no outcome of single games"
    found: dict[int, tuple[Games, ...]] = {}
    for run in arm.runs:
        outcomes = outcomes_of(run)
        for split in splits:
            games = outcomes.get(split, {}).get(update)
            if games is None:
                return {}, f"{run.name} keeps no episodes of its evaluation of {split} after {update} updates"
            found[_seed(run)] = (*found.get(_seed(run), ()), games)
    return found, ""


def _pair(ours: ArmResult, theirs: ArmResult) -> PairResult | None:
    """Return how two arms differ over the seeds that both have; None where they share none."""
    seeds = tuple(seed for seed in ours.by_seed if seed in theirs.by_seed)
    if not seeds:
        return None
    differences = np.array([ours.by_seed[seed] - theirs.by_seed[seed] for seed in seeds])
    deviation = float(np.std(differences, ddof=1)) if len(seeds) > 1 else 0.0
    games, unknown = _paired_games(ours, theirs, seeds)
    x, y = (np.concatenate(side, axis=1) for side in zip(*games, strict=True)) if games else (None, None)
    return PairResult(
        ours.name,
        theirs.name,
        seeds,
        difference_by_seed(differences),
        sign_flip_test(differences),
        deviation,
        minimum_detectable_difference(deviation, len(seeds)),
        seeds_needed(float(np.mean(differences)), deviation),
        improvement_interval(ours.scores_RT, theirs.scores_RT, [0] * ours.scores_RT.shape[1]),
        None if x is None or y is None else mcnemar(x, y),
        crossed_interval([a - b for a, b in games]) if games else None,
        unknown,
    )


def _paired_games(ours: ArmResult, theirs: ArmResult, seeds: Sequence[int]) -> tuple[list[tuple[Array, Array]], str]:
    """Return both sides' outcomes (seeds, games) of each split, or why games cannot be paired."""
    if ours.unknown or theirs.unknown:
        return [], ours.unknown or theirs.unknown
    found = []
    for part in range(len(ours.outcomes[seeds[0]])):
        games = [[side.outcomes[seed][part] for seed in seeds] for side in (ours, theirs)]
        if len({each.sha256 for side in games for each in side}) > 1:
            return [], "the evaluations are of different games"
        x, y = (np.array([[int(letter) for letter in each.won] for each in side]) for side in games)
        found.append((x, y))
    return found, ""


def _seed(run: RunData) -> int:
    return int(setting(run.config, "seed") or 0)


def profiles(result: SplitResult) -> tuple[list[float], dict[str, tuple[Array, tuple[Array, Array] | None]]]:
    """Return levels, and for each arm the share of runs on splits above each, with its band."""
    values = [float(value) for arm in result.arms for value in arm.scores_RT.ravel()]
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or 0.05
    levels = np.linspace(low - margin, high + margin, _LEVELS)
    found = {}
    for arm in result.arms:
        shares = performance_profile(arm.scores_RT, list(levels))
        found[arm.name] = shares, profile_band(arm.scores_RT, list(levels), [0] * arm.scores_RT.shape[1])
    return [float(level) for level in levels], found
