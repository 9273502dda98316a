"""The engine of one process: optimiser steps on an update's batch or on minibatches of it, for one or more epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from torch import Tensor

from envrl.config.schema import Config
from envrl.engine.guard import Guard
from envrl.engine.loss_settings import LossSettings, OldLogprobs, Regularizer
from envrl.engine.optimizer import Optimizer
from envrl.engine.placement import HERE, Placement
from envrl.engine.taught_part import load_teachers
from envrl.engine.token_losses import auxiliary_losses
from envrl.engine.update import head_values, policy_logprobs
from envrl.models.adapters import has_adapter, other_adapter, read_adapter
from envrl.models.load import LanguageModel, load_policy
from envrl.randomness import key_of
from envrl.rollout.sampler import TakesWeights
from envrl.types import Row


class Placed(NamedTuple):
    """A model, and where its rows are run."""

    model: LanguageModel
    placement: Placement


class LocalEngine:
    """Takes optimiser steps on an update's rows, on one device; see `Engine`."""

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        optimizer: Optimizer,
        run: Path,
        poll: Callable[[], None],
        say: Callable[[str], None] = lambda _: None,
        placement: Placement = HERE,
        reference: Placed | None = None,
        regularizers: Mapping[str, Regularizer] = MappingProxyType({}),
        teachers: Mapping[str, Placed] | None = None,
    ) -> None:
        """`reference`: the model that RL starts from, where KL is weighed; left out it is loaded from the run.

        `teachers`: the models of the recipe's teachers that are not the policy; left out they are loaded.
        """
        self.regularizers = regularizers
        self.config, self.model, self.poll = config, model, poll
        self.optimizer, self.policy = optimizer, Placed(model, placement)
        self.guard = Guard(model, optimizer, config.train.max_grad_norm, run, say, placement)
        if teachers is None:
            loaded = load_teachers(config, model.codec, model.context)
            teachers = {name: Placed(teacher, HERE) for name, teacher in loaded.items()}
        self.reference, self.teachers = reference, teachers
        self.start: dict[str, Tensor] | None = None
        if config.objective.kl_weight > 0 and has_adapter(model.network):
            self.start = placement.spread(read_adapter(run / "warm_start"))
        elif config.objective.kl_weight > 0 and reference is None:
            self.reference = Placed(load_policy(run / "warm_start", config), HERE)

    @property
    def skips(self) -> int:
        return self.guard.skips

    @skips.setter
    def skips(self, count: int) -> None:
        self.guard.skips = count

    @property
    def micro_batch_tokens(self) -> int:
        """The token budget of a micro-batch: the recipe's, or a lower one if memory ran out."""
        return self.guard.budget.limit or self.config.train.micro_batch_tokens

    def publish(self, sampler: TakesWeights, version: int) -> None:
        """Load the current weights into a sampler."""
        sampler.load(self.model.named_parameters(), version)

    def logprobs(self, rows: Sequence[Row]) -> OldLogprobs:
        """Return the log-probs of every row's policy tokens, by row origin."""
        return self._logprobs(self.policy, "log-probs", rows, loss_settings(self.config, {}))

    def reference_logprobs(self, rows: Sequence[Row]) -> OldLogprobs:
        """Return the log-probs of every row's policy tokens under the model that RL started from, by row origin.

        It is loaded where the recipe weighs the KL to it; else there are none.
        """
        return self._reference("reference log-probs", rows, loss_settings(self.config, {})) or {}

    def teacher_logprobs(self, teacher: str, rows: Sequence[Row]) -> OldLogprobs:
        """Return the log-probs of every row's policy tokens under a teacher of the recipe, by row origin."""
        of = self.teachers.get(teacher, self.policy)
        return self._logprobs(of, f"log-probs of the teacher '{teacher}'", rows, loss_settings(self.config, {}))

    def values(self, rows: Sequence[Row], component: str) -> OldLogprobs:
        """Return the values of a component's head for the state before each of its tokens, by row origin."""
        settings = loss_settings(self.config, {})
        return self.guard.budget.run(
            "values", settings, lambda within: head_values(self.model, rows, component, within, self.policy.placement)
        )

    def step(self, rows: Sequence[Row], weights: Mapping[str, float], update: int) -> dict[str, float]:
        """Take the update's optimiser steps; return its metrics. A step with a non-finite gradient is skipped."""
        settings = replace(loss_settings(self.config, weights), regularizers=self.regularizers)
        if not rows:
            return {"grad_norm": 0.0, "skipped": 0.0}
        name, parts = f"update-{update:06d}", optimiser_batches(self.config, rows, update)
        old = self._logprobs(self.policy, name, rows, settings) if len(parts) > 1 else None
        reference = self._reference(name, rows, settings) if settings.weights["kl"] else None
        # Between the optimiser steps of one update the weights belong to no update: only the first can be interrupted.
        polls = [self.poll, *([lambda: None] * (len(parts) - 1))]
        names = [name] if len(parts) == 1 else [f"{name}-step-{number}" for number in range(1, len(parts) + 1)]
        return _summary(
            [
                self.guard.step(
                    name, part, replace(settings, key=key_of(self.config.seed, name)), old, reference, poll
                ).figures
                for name, part, poll in zip(names, parts, polls, strict=True)
            ]
        )

    def state(self) -> dict[str, Tensor]:
        """Return the optimiser's moments and step counts by name."""
        return self.optimizer.tensors()

    def _logprobs(self, of: Placed, name: str, rows: Sequence[Row], settings: LossSettings) -> OldLogprobs:
        return self.guard.budget.run(
            name, settings, lambda within: policy_logprobs(of.model, rows, within, of.placement)
        )

    def _reference(self, name: str, rows: Sequence[Row], settings: LossSettings) -> OldLogprobs | None:
        """Return the log-probs under the reference model, or under the trained network with the reference adapter."""
        if self.start is None:
            return self._logprobs(self.reference, name, rows, settings) if self.reference else None
        with other_adapter(self.model.network, self.start):
            return self._logprobs(self.policy, name, rows, settings)


def loss_settings(config: Config, weights: Mapping[str, float]) -> LossSettings:
    """Return the recipe's loss settings, given the weights of its auxiliary components."""
    objective, train = config.objective, config.train
    kl_weight = objective.kl_weight if objective.kl_in == "loss" else 0.0
    return LossSettings(
        weights={
            "policy": objective.policy_weight,
            "entropy": objective.entropy_weight,
            "kl": kl_weight,
            "retry": config.retry.weight,
            **weights,
        },
        policy_loss=objective.loss,
        knobs=config.settings("loss"),
        kl_estimator=objective.kl_estimator,
        temperature=config.rollout.temperature,
        precision=train.precision,
        micro_batch_tokens=train.micro_batch_tokens,
        checkpointing=train.checkpointing,
        importance_cap=objective.importance_cap,
        importance_mask=objective.importance_mask,
        auxiliary_losses=auxiliary_losses(config.auxiliaries()),
    )


def optimiser_batches(config: Config, rows: Sequence[Row], update: int) -> list[list[Row]]:
    """Return the rows of each optimiser step of an update, in order."""
    train, count = config.train, config.train.minibatches
    if train.minibatch_rows:
        policy = sum(any(term.component == "policy" for term in row.terms) for row in rows)
        count = max(1, math.ceil(policy / train.minibatch_rows))
    return [
        [rows[i] for i in part]
        for epoch in range(train.epochs)
        for part in np.array_split(_order(config.seed, len(rows), update, epoch, count), count)
        if len(part)
    ]


def _order(seed: int, count: int, update: int, epoch: int, parts: int) -> np.ndarray:
    if parts == 1:
        return np.arange(count)
    return np.random.Generator(np.random.PCG64(key_of(seed, update, epoch, "minibatches"))).permutation(count)


def _summary(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for record in figures for name in record)
    values = {name: [record[name] for record in figures if name in record] for name in names}
    return {name: max(each) if name.endswith("_max") else float(np.mean(each)) for name, each in values.items()}
