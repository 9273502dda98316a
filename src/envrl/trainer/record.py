"""An update's line in metrics.jsonl, and its short form for the progress line."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from envrl.batches.batch import UpdateBatch
from envrl.batches.footprint import predicted_memory
from envrl.config.schema import Config
from envrl.engine.protocol import Engine
from envrl.eval.diversity import diversity
from envrl.eval.record import action_rates
from envrl.files import JsonLines
from envrl.models.load import LanguageModel
from envrl.models.runtime import peak_memory
from envrl.rendering.renderer import Renderer
from envrl.rollout.scheduler import RolloutStats
from envrl.rollout.splitter import BatchSplitter
from envrl.trainer.rollouts import Played
from envrl.trainer.state import RunState
from envrl.types import StopReason, TrajectoryGroup, episodes_of


class Laps:
    """Seconds of an update by phase; time in the worlds comes from the rollout stats and is separate."""

    def __init__(self) -> None:
        self.stats = RolloutStats()
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add the duration of the block to a phase."""
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase, and the total since the start."""
        rollout = self._seconds["rollout"] - self.stats.env
        return {
            **self._seconds,
            "rollout": rollout,
            "env": self.stats.env,
            "total": time.perf_counter() - self._began,
        }


@dataclass(frozen=True, slots=True)
class UpdateLog:
    """Writes the lines of metrics.jsonl."""

    config: Config
    file: JsonLines
    renderer: Renderer
    splitter: BatchSplitter
    engine: Engine
    workers: int
    """Number of worker processes that run the worlds."""

    def write(
        self,
        state: RunState,
        number: int,
        played: Played,
        batch: UpdateBatch,
        figures: Mapping[str, float],
        laps: Laps,
    ) -> dict[str, Any]:
        """Append an update's line and return it; add the update's episodes, steps and tokens to `state`."""
        of_play = played_figures(played.groups, self.renderer)
        again = {name: int(played.figures.get(f"retry/{name}", 0)) for name in ("tried", "steps", "tokens")}
        state.env_steps += of_play["train/steps"] + again["steps"]
        state.tokens += of_play["tokens"] + again["tokens"]
        state.episodes += played.episodes
        if budget := self.config.train.token_budget:
            state.learned += self.config.train.epochs * sum(len(row.token_ids) for row in batch.rows)
            figures = {**figures, "learned_tokens": state.learned, "budget_spent": state.learned / budget}
        seconds = laps.seconds()
        record = {
            "update": number,
            "env_steps": state.env_steps,
            "episodes": state.episodes,
            "total_tokens": state.tokens,
            **of_play,
            **played.figures,
            **batch.figures,
            **figures,
            "train/token_mismatches": laps.stats.mismatches,
            "env/set_aside": played.episodes - len(episodes_of(played.groups)) - again["tried"],
            "seconds": seconds,
            "rate": {
                "env_steps": of_play["train/steps"] / seconds["total"],
                "tokens": of_play["tokens"] / seconds["total"],
                **({"workers_replaced": laps.stats.replaced} if self.workers else {}),
            },
            "memory": self._memory(state.model, played, batch),
        }
        self.file.append(record)
        return record

    def _memory(self, model: LanguageModel, played: Played, batch: UpdateBatch) -> dict[str, int]:
        """Return the measured and predicted peak of the update in bytes, and the sizes in force."""
        at_once = min(self.splitter.limit or played.episodes, played.episodes)
        budget = self.engine.micro_batch_tokens
        episodes = episodes_of(played.groups)
        return {
            "peak": peak_memory(model.device),
            "predicted": predicted_memory(self.config, model, episodes, batch.rows, budget, at_once),
            "micro_batch_tokens": budget,
            "episodes_at_once": at_once,
        }


def played_figures(groups: Sequence[TrajectoryGroup], renderer: Renderer) -> dict[str, Any]:
    """Return an update's metrics of the episodes that it played."""
    trajectories = episodes_of(groups)
    steps = [step for trajectory in trajectories for step in trajectory.transitions]
    sampled = [step.action for step in steps if step.action.token_ids]
    count = len(trajectories)
    return {
        "tokens": sum(len(segment.token_ids) for trajectory in trajectories for segment in trajectory.segments),
        "train/steps": len(steps),
        "train/success_rate": sum(t.success for t in trajectories) / count,
        "train/return": float(np.mean([t.total_reward for t in trajectories])),
        "train/turns": len(steps) / count,
        "train/groups_used": sum(group.differs for group in groups) / len(groups),
        **{f"train/{name}": rate for name, rate in action_rates(trajectories).items()},
        "train/context_full": sum(t.stop_reason is StopReason.CONTEXT for t in trajectories) / count,
        "train/segments": sum(len(t.segments) for t in trajectories) / count,
        **{f"train/{name}": share for name, share in diversity(groups).items()},
        "train/retokenized_rate": sum(map(renderer.rewrites, sampled)) / max(len(steps), 1),
    }


def progress_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures for the progress line: success, entropy, and all losses but the policy's."""
    wanted = {
        "train/success_rate": "success",
        "entropy": "entropy",
        "loss/imitation": "loss",
        "held_out/imitation": "held-out",
        "held_out/action_accuracy": "actions right",
        "budget_spent": "of the budget",
    }
    losses = {key: key.removeprefix("loss/") for key in record if key.startswith("loss/") and key != "loss/policy"}
    return {short: record[name] for name, short in (losses | wanted).items() if name in record}
