"""Evaluation records in words: for the terminal, as `eval.jsonl` and `envrl eval --json` hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RATES = {
    "valid_action_rate": "valid actions",
    "admissible_action_rate": "admissible actions",
    "imagined_observation_rate": "imagined observations",
}
_NUMBERS = {
    "turns": "turns an episode",
    "state_nll": "state prediction, nats a token",
    "inverse_accuracy": "inverse dynamics, right",
}


def evaluation_lines(record: Mapping[str, Any]) -> list[str]:
    """Return an evaluation: its success rate with the interval, each task type's, and its other measurements."""
    lines = [f"{record['split']}: {success(record)} of {record['episodes']} episodes"]
    by_task: Mapping[str, Any] = record.get("by_task") or {}
    width = max(map(len, by_task), default=0)
    for kind, part in by_task.items():
        lines.append(f"  {kind:<{width}}  {success(part)} of {part['episodes']}")
    rates = [f"{what} {_percent(record[key])}" for key, what in _RATES.items() if record.get(key) is not None]
    numbers = [f"{what} {record[key]:.3g}" for key, what in _NUMBERS.items() if record.get(key) is not None]
    if rates or numbers:
        lines.append("  " + "; ".join([*rates, *numbers]))
    return lines


def success(record: Mapping[str, Any]) -> str:
    """Return a success rate with its interval: `72.1 % (64.2 to 78.9)`."""
    interval = record.get("ci95")
    bounds = f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
    return _percent(record["success_rate"]) + bounds


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"
