"""Summarise trajectories as a line of eval.jsonl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from envrl.errors import RunError
from envrl.statistics import deviation, mean_interval, wilson
from envrl.types import StopReason, Trajectory


def check_played(trajectories: Sequence[Trajectory], world: str, split: str, set_aside: Mapping[str, str]) -> None:
    """Raise `RunError` if the world failed in every episode, so that there is nothing to measure.

    `set_aside` holds the reasons, by task id.
    """
    if trajectories and all(trajectory.stop_reason is StopReason.SET_ASIDE for trajectory in trajectories):
        task = trajectories[-1].task.id
        raise RunError(
            f"the world '{world}' failed in all {len(trajectories)} games of the split '{split}': in '{task}', "
            f"{set_aside.get(task, 'as was said')}; 'envrl check-env {world}' tests a world"
        )


def success_summary(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Return the number of episodes, the success rate and its 95 % Wilson interval."""
    won = sum(trajectory.success for trajectory in trajectories)
    count = len(trajectories)
    return {"episodes": count, "success_rate": won / count if count else 0.0, "ci95": list(wilson(won, count))}


def action_rates(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return the rates of well-formed, admissible and observation-imagining actions, and of each fault that occurs."""
    steps = [step for trajectory in trajectories for step in trajectory.transitions]
    count = max(len(steps), 1)
    faults = Counter(step.action.fault for step in steps if step.action.fault)
    return {
        "valid_action_rate": sum(step.action.well_formed for step in steps) / count,
        "admissible_action_rate": sum(step.admissible for step in steps) / count,
        "imagined_observation_rate": sum(step.action.imagined for step in steps) / count,
        **{f"fault/{fault.replace(' ', '_')}": faults[fault] / count for fault in sorted(faults)},
    }


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of an example that is the same for every agent: as they were said, and a SHA-256 of them.

    Nothing for a script, which has none.
    """

    said: str = ""
    sha256: str = ""


class Evaluated(NamedTuple):
    """An evaluation: a record for each split, the episodes by split, and how the agent was asked."""

    records: list[dict[str, Any]]
    episodes: Mapping[str, Sequence[Trajectory]]
    prompts: Prompts


SoFar = Callable[[Sequence[dict[str, Any]]], None]
"""Gets the records of an interrupted evaluation: complete splits, then the last one with its `planned` episodes."""


def each_split(
    splits: Sequence[str],
    measure: Callable[[str], dict[str, Any]],
    ended: Callable[[str], tuple[int, dict[str, Any]]],
    so_far: SoFar,
    about: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return each split's record, prefixed with the fields of `about`; on an exception, pass the records to `so_far`.

    `ended` returns the number of a split's planned episodes, and the record of those that have ended.
    """
    records: list[dict[str, Any]] = []
    for split in splits:
        try:
            records.append({**about, **measure(split)})
        except BaseException:
            planned, known = ended(split)
            so_far([*records, *([{**about, **known, "planned": planned}] if known["episodes"] else [])])
            raise
    return records


def summarize(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """Return the metrics of a split's episodes: success overall and by kind of task, score, turns, action rates."""
    count = max(len(trajectories), 1)
    scores = [trajectory.total_reward for trajectory in trajectories]
    score, spread = sum(scores) / count, deviation(scores)
    aside = sum(trajectory.stop_reason is StopReason.SET_ASIDE for trajectory in trajectories)
    kinds = sorted({trajectory.task.kind for trajectory in trajectories})
    return {
        **success_summary(trajectories),
        **({"set_aside": aside} if aside else {}),
        "score": score,
        "score_sd": spread,
        "score_ci95": list(mean_interval(score, spread, count)),
        "turns": sum(len(trajectory.transitions) for trajectory in trajectories) / count,
        "by_task": {kind: success_summary([t for t in trajectories if t.task.kind == kind]) for kind in kinds if kind},
        **action_rates(trajectories),
    }
