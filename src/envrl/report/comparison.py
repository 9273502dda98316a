"""Arms compared: what each reached over its seeds, and how pairs of arms differ by seed and by game."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

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
    before: float | None
    mean: Estimate
    iqm: Estimate
    area: Estimate
    reached: Reached
    curves: Mapping[int, Points]
    outcomes: Mapping[int, Games]
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
    """Compare arms on each split; `pairs` are the indices of (arm, against); a level of None is the first arm's end.

    Raises `UserError` where no arm has the metric after an update.
    """
    results = []
    for split in [UPDATES] if metric.of_updates else splits:
        curves = [{_seed(run): metric.curve(run, split) for run in arm.runs} for arm in arms]
        known = [index for index, by_seed in enumerate(curves) if _last(by_seed) is not None]
        if not known:
            continue
        aim = level if level is not None else _ends(metric, curves[known[0]])
        found = {index: _arm_result(arms[index], metric, split, curves[index], aim) for index in known}
        compared = [_pair(found[a], found[b], metric) for a, b in pairs if a in found and b in found]
        results.append(SplitResult(split, tuple(found.values()), tuple(pair for pair in compared if pair)))
    if not results:
        raise UserError(f"no run has '{metric.name}' after an update yet, so there is nothing to compare")
    return results


def _arm_result(arm: Arm, metric: Metric, split: str, curves: Mapping[int, Points], level: float) -> ArmResult:
    update = _last(curves)
    assert update is not None
    by_seed = {seed: metric.end(curve, update) for seed, curve in curves.items()}
    until = {seed: [(x, y) for x, y in curve if x <= update] for seed, curve in curves.items()}
    areas = np.array([[area_under_curve(curve)] for curve in until.values()])
    scores = np.array([[value] for value in by_seed.values()])
    first = [dict(curve).get(0.0) for curve in curves.values()]
    outcomes, unknown = _outcomes(arm, metric, split, int(update))
    return ArmResult(
        arm.name,
        int(update),
        by_seed,
        mean(first) if all(value is not None for value in first) else None,  # type: ignore[type-var]
        stratified_bootstrap(scores, mean_of),
        stratified_bootstrap(scores, interquartile_mean),
        stratified_bootstrap(areas, mean_of),
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


def _outcomes(arm: Arm, metric: Metric, split: str, update: int) -> tuple[dict[int, Games], str]:
    """Return each seed's outcomes game by game, or why they are not known."""
    if metric.name != SUCCESS:
        return {}, f"'{metric.name}' is no outcome of single games"
    found: dict[int, Games] = {}
    for run in arm.runs:
        games = outcomes_of(run).get(split, {}).get(update)
        if games is None:
            return {}, f"{run.name} keeps no episodes of its evaluation of {split} after {update} updates"
        found[_seed(run)] = games
    return found, ""


def _pair(ours: ArmResult, theirs: ArmResult, metric: Metric) -> PairResult | None:
    """Return how two arms differ over the seeds that both have; None where they share none."""
    seeds = tuple(seed for seed in ours.by_seed if seed in theirs.by_seed)
    if not seeds:
        return None
    differences = np.array([ours.by_seed[seed] - theirs.by_seed[seed] for seed in seeds])
    deviation = float(np.std(differences, ddof=1)) if len(seeds) > 1 else 0.0
    x, y = (np.array([[value] for value in arm.by_seed.values()]) for arm in (ours, theirs))
    games, unknown = _paired_games(ours, theirs, seeds)
    return PairResult(
        ours.name,
        theirs.name,
        seeds,
        difference_by_seed(differences),
        sign_flip_test(differences),
        deviation,
        minimum_detectable_difference(deviation, len(seeds)),
        seeds_needed(float(np.mean(differences)), deviation),
        improvement_interval(x, y),
        None if games is None else mcnemar(*games),
        None if games is None else crossed_interval(games[0] - games[1]),
        unknown,
    )


def _paired_games(ours: ArmResult, theirs: ArmResult, seeds: Sequence[int]) -> tuple[tuple[Array, Array] | None, str]:
    """Return both sides' outcomes (seeds, games), or why games cannot be paired."""
    if ours.unknown or theirs.unknown:
        return None, ours.unknown or theirs.unknown
    if len({side.outcomes[seed].sha256 for side in (ours, theirs) for seed in seeds}) > 1:
        return None, "the evaluations are of different games"
    arrays = [np.array([[int(c) for c in side.outcomes[seed].won] for seed in seeds]) for side in (ours, theirs)]
    return (arrays[0], arrays[1]), ""


def _seed(run: RunData) -> int:
    return int(setting(run.config, "seed") or 0)


def profiles(result: SplitResult) -> tuple[list[float], dict[str, tuple[Array, tuple[Array, Array] | None]]]:
    """Return levels, and for each arm the share of runs above each, with its band."""
    values = [value for arm in result.arms for value in arm.by_seed.values()]
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or 0.05
    levels = np.linspace(low - margin, high + margin, _LEVELS)
    found = {}
    for arm in result.arms:
        scores = np.array([[value] for value in arm.by_seed.values()])
        found[arm.name] = (performance_profile(scores, list(levels)), profile_band(scores, list(levels)))
    return [float(level) for level in levels], found


def as_json(results: Sequence[SplitResult]) -> dict[str, Any]:
    """Return results as JSON, by split; the outcomes of single games are left to the records of the runs."""
    table: dict[str, Any] = {}
    for result in results:
        levels, found = profiles(result)
        table[result.split] = {
            "arms": [_arm_json(arm) for arm in result.arms],
            "pairs": [_pair_json(pair) for pair in result.pairs],
            "profiles": {"levels": levels, **{name: [float(v) for v in shares] for name, (shares, _) in found.items()}},
        }
    return table


def _arm_json(arm: ArmResult) -> dict[str, Any]:
    return {
        "name": arm.name,
        "update": arm.update,
        "by_seed": {str(seed): value for seed, value in arm.by_seed.items()},
        "before": arm.before,
        "mean": arm.mean._asdict(),
        "interquartile_mean": arm.iqm._asdict(),
        "area_under_curve": arm.area._asdict(),
        "reached": {name: getattr(arm.reached, name) for name in ("level", "runs", "updates", "env_steps")},
        "by_game_unknown": arm.unknown,
    }


def _pair_json(pair: PairResult) -> dict[str, Any]:
    return {
        "name": pair.name,
        "against": pair.against,
        "seeds": list(pair.seeds),
        "difference": pair.by_seed._asdict(),
        "sign_flip_p": pair.p_by_seed,
        "deviation": pair.deviation,
        "minimum_detectable_difference": pair.detectable,
        "seeds_needed": pair.needed,
        "probability_of_improvement": pair.improvement._asdict(),
        "mcnemar": pair.by_game._asdict() if pair.by_game else None,
        "seeds_and_games": pair.crossed._asdict() if pair.crossed else None,
        "by_game_unknown": pair.unknown,
    }
