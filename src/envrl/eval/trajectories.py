"""Episodes on disk, one a line, to be read by people: what was seen, done and with what probability, and predicted."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envrl.config.schema import Config
from envrl.eval.probe import score_targets
from envrl.eval.questions import state_pairs
from envrl.files import write_text
from envrl.models.load import LanguageModel
from envrl.progress import Reporter
from envrl.rendering.renderer import Renderer
from envrl.rollout.predict import predict_targets
from envrl.types import Trajectory, TrajectoryGroup, Transition, episodes_of

PREDICTED = 8
"""Trajectories of a file whose answers are also predicted in words; greedy decoding costs more than playing."""


def write_trajectories(
    run: Path,
    name: str,
    update: int,
    trajectories: Sequence[Trajectory],
    model: LanguageModel,
    renderer: Renderer,
    config: Config,
) -> None:
    """Write `trajectories/NAME.jsonl`; every step has the state prediction's loss (nats a token) under this model.

    Where the recipe trains state prediction, the first few trajectories also have what the model would have predicted.
    """
    scores = iter(score_targets(model, state_pairs(config, renderer, trajectories)))
    trained = {each.name for stage in ("", "warm_start") for each in config.auxiliaries(stage)} & {"state", "echo"}
    shown = state_pairs(config, renderer, trajectories[:PREDICTED] if trained else ())
    predicted = iter(predict_targets(model, shown, renderer.stops))
    lines = []
    for trajectory in trajectories:
        steps = []
        for step in trajectory.transitions:
            score, prediction = next(scores), next(predicted, None)
            record = _step_record(step, renderer) | {"state_nll": -score.logprob / max(score.tokens, 1)}
            steps.append(record if prediction is None else record | {"predicted_observation": prediction})
        lines.append(json.dumps(_record(update, trajectory) | {"steps": steps}, ensure_ascii=False))
    folder = run / "trajectories"
    folder.mkdir(exist_ok=True)
    write_text(folder / f"{name}.jsonl", "".join(line + "\n" for line in lines))


def write_shown(
    run: Path,
    update: int,
    groups: Sequence[TrajectoryGroup],
    model: LanguageModel,
    renderer: Renderer,
    config: Config,
    reporter: Reporter,
) -> None:
    """Write the first groups of an update down, where the recipe asks for it."""
    count = config.train.trajectories
    if count and update % config.train.trajectories_every == 0:
        with reporter.phase("writing episodes down"):
            write_trajectories(
                run, f"update-{update:06d}", update, episodes_of(groups[:count]), model, renderer, config
            )


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


def _step_record(step: Transition, renderer: Renderer) -> dict[str, Any]:
    written = renderer.text_of(step.action.token_ids)
    said = {"response": written} if written else {}
    said |= {"fault": step.action.fault} if step.action.fault else {}
    return {
        "observation": step.observation.text,
        **said,
        "action": step.action.text,
        "probability": math.exp(sum(step.action.logprobs)),
        "reward": step.reward,
        "next_observation": step.next_observation.text,
    }
