"""Episodes on disk, one a line, to be read by people: what was seen, done and with what probability, and predicted."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envrl.eval.probe import score_targets
from envrl.models.load import LanguageModel
from envrl.rollout.auxiliary import Form, state_pairs
from envrl.trainer.files import write_text
from envrl.types import Trajectory


def write_trajectories(
    run: Path, name: str, update: int, trajectories: Sequence[Trajectory], model: LanguageModel
) -> None:
    """Write `trajectories/NAME.jsonl`; every step carries the state prediction's loss (nats a token) of this model."""
    scores = iter(score_targets(model, state_pairs(trajectories, model.codec, Form())))
    lines = []
    for trajectory in trajectories:
        steps = []
        for step in trajectory.transitions:
            score = next(scores)
            steps.append(_step_record(step) | {"state_nll": -score.logprob / score.tokens})
        lines.append(json.dumps(_record(update, trajectory) | {"steps": steps}, ensure_ascii=False))
    folder = run / "trajectories"
    folder.mkdir(exist_ok=True)
    write_text(folder / f"{name}.jsonl", "".join(line + "\n" for line in lines))


def _record(update: int, trajectory: Trajectory) -> dict[str, Any]:
    return {
        "update": update,
        "task": trajectory.task.id,
        "kind": trajectory.task.kind,
        "member": trajectory.member,
        "success": trajectory.success,
        "stop_reason": trajectory.stop_reason,
        "return": trajectory.total_reward,
    }


def _step_record(step: Any) -> dict[str, Any]:
    return {
        "observation": step.observation.text,
        "action": step.action.text,
        "probability": math.exp(sum(step.action.logprobs)),
        "reward": step.reward,
        "next_observation": step.next_observation.text,
    }
