"""The tables of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from envrl.report.comparison import TOGETHER, ArmResult, PairResult, SplitResult
from envrl.report.measures import Metric
from envrl.report.table import Table
from envrl.statistics.aggregate import Estimate

_DASH = "\N{EN DASH}"


def settings_table(names: Sequence[str], keys: Mapping[str, Sequence[Any]]) -> Table:
    """Return the keys that differ between arms, a row each."""
    rows = [(key, *(_DASH if value is None else _value(value) for value in values)) for key, values in keys.items()]
    return Table("What differs between the arms", ("key", *map(shortened, names)), tuple(rows))


def arms_table(result: SplitResult, metric: Metric) -> Table:
    """Return what each arm reached: mean and interquartile mean over seeds, on the way, and until the level."""
    level = result.arms[0].reached.level
    header = (
        "arm", "seeds", "before RL", "after RL: mean", "interquartile mean", "mean on the way",
        f"updates to {_number(level, metric)}", "env steps to it", "by seed",
    )  # fmt: skip
    rows = tuple(_arm_row(arm, metric) for arm in result.arms)
    updates = {arm.update for arm in result.arms}
    when = f"after {updates.pop()} updates" if len(updates) == 1 else "at the last update that an arm's runs share"
    return Table(f"{metric.name} of {_of(result)}, {when}; 95 % intervals over seeds", header, rows)


def _arm_row(arm: ArmResult, metric: Metric) -> tuple[str, ...]:
    reached = arm.reached
    count = f" ({reached.runs} of {len(arm.by_seed)})" if reached.runs < len(arm.by_seed) else ""
    return (
        shortened(arm.name),
        str(len(arm.by_seed)),
        _DASH if arm.before is None else _number(arm.before, metric),
        _estimate(arm.mean, metric),
        _estimate(arm.iqm, metric),
        _estimate(arm.area, metric),
        (_DASH if reached.updates is None else f"{reached.updates:.0f}") + count,
        _DASH if reached.env_steps is None else figure(reached.env_steps),
        ", ".join(f"{seed}: {_number(value, metric)}" for seed, value in arm.by_seed.items()),
    )


def pairs_table(result: SplitResult, metric: Metric) -> Table:
    """Return how arms differ: by seed, by game, by both, and what difference could have been found."""
    chance = "P(improvement)" if metric.higher_is_better else "P(higher)"
    header = (
        "difference", "pairs", "by seed", "p", "other seeds and games", "games won alone", "McNemar p", chance,
        "detectable", "seeds needed",
    )  # fmt: skip
    unit = ", points" if metric.is_rate else ""
    rows = tuple(_pair_row(pair, metric) for pair in result.pairs)
    return Table(f"Differences in {metric.name} of {_of(result)}{unit}; 95 % intervals", header, rows)


def _pair_row(pair: PairResult, metric: Metric) -> tuple[str, ...]:
    game, chance = pair.by_game, pair.improvement
    interval = "" if chance.low is None else f" ({chance.low:.2f} to {chance.high:.2f})"
    return (
        f"{shortened(pair.name)} \N{MINUS SIGN} {shortened(pair.against)}",
        str(len(pair.seeds)),
        _difference(pair.by_seed, metric),
        _DASH if len(pair.seeds) < 2 else _p(pair.p_by_seed),
        _DASH if pair.crossed is None else _difference(pair.crossed, metric),
        _DASH if game is None else f"{game.gained}, {game.lost}",
        _DASH if game is None else _p(game.p),
        f"{chance.value:.2f}{interval}",
        _DASH if pair.detectable is None else _number(pair.detectable, metric),
        _DASH if len(pair.seeds) < 2 else "> 10,000" if pair.needed is None else f"{pair.needed:,}",
    )


def _of(result: SplitResult) -> str:
    return "all splits, each counting the same" if result.split == TOGETHER else result.split


def notes(results: Sequence[SplitResult]) -> list[str]:
    """Return why games are not compared one by one, where they are not."""
    whys = {pair.unknown: f"{pair.name} and {pair.against}" for r in results for pair in r.pairs if pair.unknown}
    return [f"by game: not known for {who}, since {why}" for why, who in whys.items()]


def figure(value: float) -> str:
    """Return a number as people write it: three significant digits, thousands and millions as k and M."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}" if size >= 1e-4 else f"{value:.1e}"


def shortened(name: str) -> str:
    """Return an arm's name, where it is a method in words, with fewer of them."""
    for long, short in (("state prediction", "state"), ("inverse dynamics", "inverse"), (": exchanged targets", "")):
        name = name.replace(long, short)
    return name


def _number(value: float, metric: Metric) -> str:
    return f"{100 * value:.1f}" if metric.is_rate else f"{value:.4g}"


def _estimate(estimate: Estimate, metric: Metric) -> str:
    words = _number(estimate.value, metric)
    if estimate.low is None or estimate.high is None:
        return words
    return f"{words} ({_number(estimate.low, metric)} to {_number(estimate.high, metric)})"


def _difference(estimate: Estimate, metric: Metric) -> str:
    def signed(value: float) -> str:
        return f"{100 * value:+.1f}" if metric.is_rate else f"{value:+.4g}"

    if estimate.low is None or estimate.high is None:
        return signed(estimate.value)
    return f"{signed(estimate.value)} ({signed(estimate.low)} to {signed(estimate.high)})"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"


def _value(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
