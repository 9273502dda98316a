"""The optimiser steps of one update: the whole batch or minibatches of it, in one pass or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from envrl.config.schema import Config
from envrl.models.load import LanguageModel, load_policy
from envrl.rollout.randomness import key_of
from envrl.trainer.guard import Guard
from envrl.trainer.optimizer import Optimizer
from envrl.trainer.update import LossSettings, policy_logprobs
from envrl.types import Row


class Optimization:
    """Turns an update's rows into optimiser steps."""

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        optimizer: Optimizer,
        run: Path,
        poll: Callable[[], None],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config, self.model, self.poll = config, model, poll
        self.guard = Guard(model, optimizer, config.train.max_grad_norm, run, say)
        self.reference: LanguageModel | None = None
        if config.objective.kl_weight > 0:
            self.reference = load_policy(run / "warm_start", config)

    def _settings(self, weights: Mapping[str, float]) -> LossSettings:
        objective, train = self.config.objective, self.config.train
        return LossSettings(
            weights={"policy": 1.0, "entropy": objective.entropy_weight, "kl": objective.kl_weight, **weights},
            policy_loss=objective.loss,
            knobs={
                "clip_low": objective.clip_low,
                "clip_high": objective.clip_high,
                "dual_clip": objective.dual_clip or None,
            },
            temperature=self.config.rollout.temperature,
            precision=train.precision,
            micro_batch_tokens=train.micro_batch_tokens,
        )

    def step(self, rows: Sequence[Row], weights: Mapping[str, float], update: int) -> dict[str, float]:
        """Take the update's optimiser steps; return its metrics. A batch with a bad number changes nothing."""
        train = self.config.train
        settings = self._settings(weights)
        if not rows:
            return {"grad_norm": 0.0, "skipped": 0.0}
        steps = train.epochs * train.minibatches
        old = policy_logprobs(self.model, rows, settings) if steps > 1 else None
        reference = policy_logprobs(self.reference, rows, settings) if self.reference else None
        parts = [
            [rows[i] for i in part]
            for epoch in range(train.epochs)
            for part in np.array_split(self._order(len(rows), update, epoch), train.minibatches)
            if len(part)
        ]
        # Between two optimiser steps of one update the weights are no update's: a stop waits until the last of them.
        polls = [self.poll, *([_never] * (len(parts) - 1))]
        name = f"update-{update:06d}"
        names = [name] if len(parts) == 1 else [f"{name}-step-{number}" for number in range(1, len(parts) + 1)]
        return _mean(
            [
                self.guard.step(name, part, settings, old, reference, poll).figures
                for name, part, poll in zip(names, parts, polls, strict=True)
            ]
        )

    def _order(self, count: int, update: int, epoch: int) -> np.ndarray:
        if self.config.train.minibatches == 1:
            return np.arange(count)
        return np.random.Generator(np.random.PCG64(key_of(self.config.seed, update, epoch, "minibatches"))).permutation(
            count
        )


def _never() -> None:
    """Let nothing interrupt."""


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for record in figures for name in record)
    return {name: float(np.mean([record[name] for record in figures if name in record])) for name in names}
