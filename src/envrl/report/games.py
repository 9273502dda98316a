"""Which games of an evaluation were won, one by one: what tests that pair games need, small enough for a record."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envrl.report.read import Games, RunData, number, setting

_FILE = re.compile(r"(?P<update>\d+)-(?P<split>.+)\.jsonl")

Outcomes = Mapping[str, Mapping[int, Games]]
"""By split and update."""


def outcomes_in(run: Path, config: Mapping[str, Any]) -> dict[str, dict[int, Games]]:
    """Return the outcomes in the `eval/` folder of a run; a line still being written is left out."""
    actions = setting(config, "rollout.actions") or "admissible"
    found: dict[str, dict[int, Games]] = {}
    folder = run / "eval"
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (match := _FILE.fullmatch(file.name)) and (games := _games_in(file, actions)) is not None:
            found.setdefault(match["split"], {})[int(match["update"])] = games
    return found


def agreeing(outcomes: Outcomes, run: RunData) -> dict[str, dict[int, Games]]:
    """Return the outcomes whose number and wins are those of the run's evaluations.

    Where a world failed, a game counts as lost and has no episode: then games cannot be paired.
    """
    found: dict[str, dict[int, Games]] = {}
    for split, records in run.evals.items():
        for record in records:
            update = int(number(record, "update") or 0)
            games = outcomes.get(split, {}).get(update)
            episodes, rate = number(record, "episodes"), number(record, "success_rate")
            if games is None or episodes is None or rate is None or episodes != len(games.won):
                continue
            if round(rate * episodes) == games.won.count("1"):
                found.setdefault(split, {})[update] = games
    return found


def outcomes_as_json(outcomes: Outcomes) -> dict[str, list[dict[str, Any]]]:
    """Return outcomes as a record holds them."""
    return {
        split: [{"update": update, "sha256": games.sha256, "won": games.won} for update, games in by_update.items()]
        for split, by_update in outcomes.items()
    }


def outcomes_of_json(table: Mapping[str, Any]) -> dict[str, dict[int, Games]]:
    """Return what `outcomes_as_json` made; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    return {
        split: {int(each["update"]): Games(str(each["sha256"]), str(each["won"])) for each in evaluations}
        for split, evaluations in table.items()
    }


def _games_in(file: Path, actions: str) -> Games | None:
    """Return the outcomes in a file of kept episodes; None where it holds none, or another format."""
    won: dict[tuple[str, int], bool] = {}
    try:
        for line in file.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            episode = json.loads(line)
            if episode.get("actions") == actions:
                won[episode["task"], episode["member"]] = episode["success"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not won:
        return None
    ids = json.dumps(sorted(won), separators=(",", ":"))
    return Games(hashlib.sha256(ids.encode()).hexdigest(), "".join("1" if won[who] else "0" for who in sorted(won)))
