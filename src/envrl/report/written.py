"""A comparison as files: tables, JSON, plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from envrl.report.comparison import ArmResult, PairResult, SplitResult, profiles
from envrl.report.figures import write_figures
from envrl.report.measures import Metric
from envrl.report.read import write_whole
from envrl.report.tables import Table


def write_comparison(
    folder: Path, tables: Sequence[Table], results: Sequence[SplitResult], metric: Metric, record: Mapping[str, Any]
) -> None:
    """Write `comparison.md`, `.tex`, `.json` and the figures into a folder, which is made."""
    folder.mkdir(exist_ok=True)
    for suffix, form in (("md", "markdown"), ("tex", "latex")):
        write_whole(folder / f"comparison.{suffix}", "\n\n".join(table.written(form) for table in tables) + "\n")
    write_whole(folder / "comparison.json", json.dumps(record, indent=1) + "\n")
    write_figures(results, metric, folder)


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
