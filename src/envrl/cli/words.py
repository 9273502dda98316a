"""Evaluation records in words: for the terminal, what `eval.jsonl` and `envrl eval --json` hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from envrl.report.read import has_scores
from envrl.report.summary import score_words

_RATES = {
    "valid_action_rate": "valid actions",
    "admissible_action_rate": "admissible",
    "imagined_observation_rate": "imagined observations",
}
_KNOWLEDGE = {"inverse_accuracy": "acts recognised", "inverse_accuracy_unnamed": "where the text does not name them"}


def evaluation_lines(record: Mapping[str, Any]) -> list[str]:
    """Return an evaluation: its success rate with the interval, each task type's, and its other measurements."""
    scored = f", score {score_words(record)}" if has_scores([record]) else ""
    planned = f" so far, {record['planned']} planned" if "planned" in record else ""
    lines = [f"{record['split']}: {success(record)} of {record['episodes']} episodes{planned}{scored}"]
    by_task: Mapping[str, Any] = record.get("by_task") or {}
    width = max(map(len, by_task), default=0)
    for kind, part in by_task.items():
        lines.append(f"  {kind:<{width}}  {success(part)} of {part['episodes']}")
    turns = [f"{record['turns']:.1f} turns an episode"] if "turns" in record else []
    lines.append("  " + "; ".join([*turns, *_percentages(record, _RATES)]))
    if record.get("set_aside"):
        lines.append(f"  set aside and counted as lost, since their world failed: {record['set_aside']}")
    if "requests" in record:
        lines += _request_lines(record)
    if record.get("free/episodes"):
        free = {"success_rate": "success", **_RATES}
        said = _percentages(record, {f"free/{key}": words for key, words in free.items()})
        lines.append(f"  unrestricted, {record['free/episodes']} episodes: {'; '.join(said)}")
    if record.get("state_nll") is not None:
        known = [f"state prediction {record['state_nll']:.3f} nats a token", *_percentages(record, _KNOWLEDGE)]
        lines.append(f"  {'; '.join(known)}")
    return lines


def _request_lines(record: Mapping[str, Any]) -> list[str]:
    """Return what an endpoint was asked, and what was wrong with its answers."""
    counts = record["prompt_tokens"], record["completion_tokens"]
    tokens = "tokens not counted by the endpoint" if None in counts else "{:,} + {:,} tokens".format(*counts)
    cost = f", cost {record['cost']:.4g}" if record.get("cost") is not None else ""
    faults = ", ".join(f"{count} {fault}" for fault, count in record["faults"].items())
    lines = [f"  {record['requests']} requests, {record['retries']} asked again; {tokens}{cost}"]
    return [*lines, f"  faults: {faults}"] if faults else lines


def success(record: Mapping[str, Any]) -> str:
    """Return a success rate with its interval: `72.1 % (64.2 to 78.9)`."""
    low, high = record["ci95"]
    return f"{100 * record['success_rate']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _percentages(record: Mapping[str, Any], words: Mapping[str, str]) -> list[str]:
    return [f"{what} {100 * record[key]:.1f} %" for key, what in words.items() if record.get(key) is not None]
