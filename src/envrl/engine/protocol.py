"""The engine protocol, through which the training loop takes optimiser steps, and the built-in engine.

An engine knows nothing about algorithms: it sees rows with their loss terms, and the weight of each component. It is
made with the run's regularizers of the policy's tokens, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from envrl.config.schema import Config
from envrl.registry import register
from envrl.rollout.sampler import TakesWeights
from envrl.types import FloatArray, Row

if TYPE_CHECKING:  # a recipe's settings are those of these signatures, and reading one takes no torch
    from torch import Tensor

    from envrl.engine.loss_settings import Regularizer
    from envrl.engine.optimizer import Optimizer
    from envrl.models.load import LanguageModel


class Engine(Protocol):
    """Holds and trains the weights."""

    @property
    def skips(self) -> int:
        """Consecutive steps skipped because loss or gradient was not finite; a resumed run sets it."""
        ...

    @skips.setter
    def skips(self, count: int) -> None: ...

    @property
    def micro_batch_tokens(self) -> int:
        """The current token budget of a micro-batch."""
        ...

    def step(self, rows: Sequence[Row], weights: Mapping[str, float], update: int) -> dict[str, float]:
        """Take an update's optimiser steps, given the weights λ of the auxiliary components; return its metrics."""
        ...

    def logprobs(self, rows: Sequence[Row]) -> Mapping[str, FloatArray]:
        """Return the log-probs of every row's policy tokens under the current weights, by row origin."""
        ...

    def reference_logprobs(self, rows: Sequence[Row]) -> Mapping[str, FloatArray]:
        """Return the same under the model that RL started from, if the recipe weighs the KL to it; else nothing."""
        ...

    def teacher_logprobs(self, teacher: str, rows: Sequence[Row]) -> Mapping[str, FloatArray]:
        """Return the same under the model of the recipe's teacher of that name, or under the current weights."""
        ...

    def values(self, rows: Sequence[Row], component: str) -> Mapping[str, FloatArray]:
        """Return the values of a component's head for its tokens in every row, by row origin."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """Return the optimiser's moments and step counts by name, whole, as `Optimizer.restore` takes them.

        Of several processes, which all call this at the same point, the first gets them.
        """
        ...

    def publish(self, sampler: TakesWeights, version: int) -> None:
        """Load the current weights into a sampler, as policy version `version`."""
        ...


@register("engine", "local")
def local(
    config: Config,
    model: LanguageModel,
    optimizer: Optimizer,
    run: Path,
    poll: Callable[[], None],
    say: Callable[[str], None],
    regularizers: Mapping[str, Regularizer] = MappingProxyType({}),
) -> Engine:
    """Return the engine of one process on one device."""
    from envrl.engine.local import LocalEngine

    return LocalEngine(config, model, optimizer, run, poll, say, regularizers=regularizers)


@register("engine", "sharded", shards=True)
def sharded(
    config: Config,
    model: LanguageModel,
    optimizer: Optimizer,
    run: Path,
    poll: Callable[[], None],
    say: Callable[[str], None],
    regularizers: Mapping[str, Regularizer] = MappingProxyType({}),
) -> Engine:
    """Return the engine of many processes, each with a shard of the weights (FSDP2)."""
    from envrl.engine.sharded import ShardedEngine

    return ShardedEngine(config, model, optimizer, run, poll, say, regularizers)


@register("engine", "frozen", learns=False)
def frozen(
    config: Config,
    model: LanguageModel,
    optimizer: Optimizer,
    run: Path,
    poll: Callable[[], None],
    say: Callable[[str], None],
    regularizers: Mapping[str, Regularizer] = MappingProxyType({}),
) -> Engine:
    """Return the engine that takes no steps, for a run that learns in its memory alone: the weights stay."""
    from envrl.engine.frozen import FrozenEngine

    still = replace(config, objective=replace(config.objective, kl_weight=0.0))  # neither a reference nor teachers
    return FrozenEngine(still, model, optimizer, run, poll, say, teachers={})
