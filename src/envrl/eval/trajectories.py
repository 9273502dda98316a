"""Write episodes for people to read, one per line: observations, actions with probabilities, and predictions."""

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
"""Number of trajectories per file with predicted answers as text; greedy decoding costs more than playing."""


def write_trajectories(
    run: Path,
    name: str,
    update: int,
    trajectories: Sequence[Trajectory],
    model: LanguageModel,
    renderer: Renderer,
    config: Config,
) -> None:
    """Write `trajectories/NAME.jsonl`; every step has the state prediction loss (nats per token) under this model.

    If the recipe trains state prediction, the first few trajectories also have the model's predictions as text.
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
    """Write the first groups of an update, if the recipe asks for them at this update."""
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
    text = renderer.text_of(step.action.token_ids)
    response = {"response": text} if text else {}
    response |= {"fault": step.action.fault} if step.action.fault else {}
    return {
        "observation": step.observation.text,
        **response,
        "action": step.action.text,
        "probability": math.exp(sum(step.action.logprobs)),
        "reward": step.reward,
        "next_observation": step.next_observation.text,
    }
