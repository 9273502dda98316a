"""The optimiser steps of one update: whole batch or minibatches, one pass or several; what happens to bad numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envrl.config.schema import Config
from envrl.errors import RunError
from envrl.models.load import LanguageModel, load_model
from envrl.rollout.randomness import key_of
from envrl.trainer.files import write_text
from envrl.trainer.optimizer import Optimizer
from envrl.trainer.update import LossSettings, OldLogprobs, Totals, accumulate, clip_gradient, policy_logprobs
from envrl.types import Row

LARGEST_RUN_OF_SKIPS = 3


class Optimization:
    """Turns rows into optimiser steps; remembers how many batches in a row had to be skipped."""

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        optimizer: Optimizer,
        run: Path,
        poll: Callable[[], None],
    ) -> None:
        self.config, self.model, self.optimizer, self.run, self.poll = config, model, optimizer, run, poll
        self.skips = 0
        self.reference: LanguageModel | None = None
        if config.objective.kl_weight > 0:
            self.reference = load_model(run / "warm_start", config.train.device)

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
            return {"grad_norm": 0.0}
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
        return _mean(
            [self._one(part, settings, old, reference, update, poll) for part, poll in zip(parts, polls, strict=True)]
        )

    def _order(self, count: int, update: int, epoch: int) -> np.ndarray:
        if self.config.train.minibatches == 1:
            return np.arange(count)
        return np.random.Generator(np.random.PCG64(key_of(self.config.seed, update, epoch, "minibatches"))).permutation(
            count
        )

    def _one(
        self,
        rows: Sequence[Row],
        settings: LossSettings,
        old: OldLogprobs | None,
        reference: OldLogprobs | None,
        update: int,
        poll: Callable[[], None],
    ) -> dict[str, float]:
        parameters = list(self.model.network.parameters())
        try:
            totals, loss = accumulate(self.model, rows, settings, old, reference, poll)
            norm = clip_gradient(parameters, self.config.train.max_grad_norm)
            if math.isfinite(loss) and math.isfinite(norm):
                self.optimizer.step()
                self.skips = 0
                return self._figures(totals, norm)
        finally:
            self.optimizer.zero_grad()
        self._skip(rows, settings, update, loss, norm)
        return {"grad_norm": norm, "skipped": 1.0}

    @staticmethod
    def _figures(totals: Totals, norm: float) -> dict[str, float]:
        return {**{name: totals.mean(name) for name in totals.sums}, "grad_norm": norm, "skipped": 0.0}

    def _skip(self, rows: Sequence[Row], settings: LossSettings, update: int, loss: float, norm: float) -> None:
        """Save the batch under its update's name; the third in a row ends the run."""
        self.skips += 1
        file = self.run / "skipped" / f"update-{update:06d}.json"
        file.parent.mkdir(exist_ok=True)
        record = {
            "loss": str(loss),
            "grad_norm": str(norm),
            "weights": dict(settings.weights),
            "rows": [_plain(r) for r in rows],
        }
        write_text(file, json.dumps(record))
        if self.skips >= LARGEST_RUN_OF_SKIPS:
            raise RunError(
                f"{self.skips} batches in a row had a loss or gradient that is not finite (the last: {file}); the "
                "weights are untouched: lower train.learning_rate or the auxiliary weights and start again"
            )


def _never() -> None:
    """Let nothing interrupt."""


def _plain(row: Row) -> dict[str, Any]:
    return {
        "origin": row.origin,
        "token_ids": row.token_ids.tolist(),
        "terms": [
            {
                "component": term.component,
                "positions": term.positions_T.tolist(),
                "weights": term.weights_T.tolist(),
                "advantages": None if term.advantages_T is None else term.advantages_T.tolist(),
            }
            for term in row.terms
        ],
    }


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for record in figures for name in record)
    return {name: float(np.mean([record[name] for record in figures if name in record])) for name in names}
