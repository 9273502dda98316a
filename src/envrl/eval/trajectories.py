"""Write episodes for people to read, one per line: observations, actions with probabilities, and predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from envrl.batches.batch import step_advantages
from envrl.config.schema import Config
from envrl.eval.probe import score_targets
from envrl.eval.questions import inverse_pairs, state_pairs
from envrl.eval.token_figures import DIGITS, token_figures
from envrl.files import write_text
from envrl.models.load import LanguageModel
from envrl.objective.advantage import ESTIMATORS
from envrl.progress import Reporter
from envrl.rendering.renderer import Renderer
from envrl.rollout.predict import LONGEST, predict_targets
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
    advantages: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> None:
    """Write `trajectories/NAME.jsonl`: episodes with what the model thought at every step of them.

    That is what `token_figures` gives and the state prediction loss (nats per token); the first few episodes also have
    the model's predictions as text, of the answers and of the commands, if the recipe trains these. `advantages` holds
    more fields for each step of each episode of an update, which also get the entropies of their tokens.
    """
    tokens = token_figures(model, trajectories, config, entropies=bool(advantages))
    scores = iter(score_targets(model, state_pairs(config, renderer, trajectories)))
    predictions = iter(_predictions(model, renderer, config, trajectories[:PREDICTED]))
    lines = []
    for number, trajectory in enumerate(trajectories):
        steps = []
        for place, step in enumerate(trajectory.transitions):
            score = next(scores)
            record = _step_record(step, renderer) | tokens[number][place]
            record |= advantages[number][place] if advantages else {}
            record |= {"state_nll": -score.logprob / max(score.tokens, 1)}
            steps.append(record | next(predictions, {}))
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
            shown, parts = episodes_of(groups[:count]), advantage_parts(groups, config)
            write_trajectories(run, f"update-{update:06d}", update, shown, model, renderer, config, parts)


def advantage_parts(groups: Sequence[TrajectoryGroup], config: Config) -> list[list[dict[str, Any]]]:
    """Return `advantage` for each step of each episode, and `advantage_parts` if it is a sum.

    An estimator with the setting `step_weight` (GiGPO, GraphGPO) adds an advantage of the step to that of the episode.
    Nothing for one that reads a head's values, and where rewards are added to the world's: these are not at hand here.
    """
    if ESTIMATORS[config.objective.estimator].reads_values or config.rewards():
        return []
    whole = step_advantages(groups, config)
    if "step_weight" not in config.settings("estimator"):
        return [[{"advantage": round(float(value), DIGITS)} for value in values_S] for values_S in whole]
    episode = step_advantages(groups, config, step_weight=0.0)
    return [
        [
            {
                "advantage": round(float(all_), DIGITS),
                "advantage_parts": {"episode": round(float(one), DIGITS), "step": round(float(all_ - one), DIGITS)},
            }
            for all_, one in zip(whole_S, episode_S, strict=True)
        ]
        for whole_S, episode_S in zip(whole, episode, strict=True)
    ]


def _predictions(
    model: LanguageModel, renderer: Renderer, config: Config, trajectories: Sequence[Trajectory]
) -> list[dict[str, str]]:
    """Return for each step the greedy predictions of what the recipe trains: its answer, its command.

    None is longer than twice the longest true one: a model that knows little would go on for long.
    """
    trained = {each.asks for stage in ("", "warm_start") for each in config.auxiliaries(stage)}
    asked = {
        "predicted_observation": state_pairs if "state" in trained else None,
        "predicted_action": inverse_pairs if "inverse" in trained else None,
    }
    pairs = {key: of(config, renderer, trajectories) for key, of in asked.items() if of is not None}
    every = [pair for of_key in pairs.values() for pair in of_key]
    room = min(LONGEST, 2 * max((len(pair.target) for pair in every), default=0))
    texts = iter(predict_targets(model, every, renderer.stops, room))
    found = {key: list(islice(texts, len(of_key))) for key, of_key in pairs.items()}
    return [dict(zip(found, step, strict=True)) for step in zip(*found.values(), strict=True)]


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
    response |= {"imagined": True} if step.action.imagined else {}
    response |= {"told": step.observation.help} if step.observation.help else {}
    return {
        "observation": step.observation.text,
        **response,
        "action": step.action.text,
        "admissible": step.admissible,
        "probability": math.exp(sum(step.action.logprobs)),
        "reward": step.reward,
        "next_observation": step.next_observation.text,
    }
