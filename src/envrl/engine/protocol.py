"""Where optimiser steps are taken: what the loop asks of an engine, and the one that is built in.

An engine is blind to algorithms: it sees rows with their terms, and how much each component weighs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from envrl.config.schema import Config
from envrl.registry import register
from envrl.rollout.sampler import Sampler
from envrl.types import FloatArray, Row

if TYPE_CHECKING:  # a recipe's settings are those of these signatures, and reading one takes no torch
    from torch import Tensor

    from envrl.engine.optimizer import Optimizer
    from envrl.models.load import LanguageModel


class Engine(Protocol):
    """Holds the weights that are trained."""

    @property
    def skips(self) -> int:
        """Steps in a row that were left out, since their loss or gradient was not finite; a resumed run sets it."""
        ...

    @skips.setter
    def skips(self, count: int) -> None: ...

    @property
    def micro_batch_tokens(self) -> int:
        """The token budget of a pass that is in force."""
        ...

    def step(self, rows: Sequence[Row], weights: Mapping[str, float], update: int) -> dict[str, float]:
        """Take an update's optimiser steps, given λ of its auxiliary components; return its metrics."""
        ...

    def logprobs(self, rows: Sequence[Row]) -> Mapping[str, FloatArray]:
        """Return the log-probs of every row's policy tokens under the present weights, by row origin."""
        ...

    def values(self, rows: Sequence[Row], component: str) -> Mapping[str, FloatArray]:
        """Return what the head of a component gives for its tokens of every row, by row origin."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """Return the optimiser's moments and step counts by name, whole, as `Optimizer.restore` takes them."""
        ...

    def publish(self, sampler: Sampler, version: int) -> None:
        """Give a sampler the present weights, as those that play an update."""
        ...


@register("engine", "local")
def local(
    config: Config,
    model: LanguageModel,
    optimizer: Optimizer,
    run: Path,
    poll: Callable[[], None],
    say: Callable[[str], None],
) -> Engine:
    """Return the engine of one process on one device."""
    from envrl.engine.local import LocalEngine

    return LocalEngine(config, model, optimizer, run, poll, say)


@register("engine", "sharded", shards=True)
def sharded(
    config: Config,
    model: LanguageModel,
    optimizer: Optimizer,
    run: Path,
    poll: Callable[[], None],
    say: Callable[[str], None],
) -> Engine:
    """Return the engine of many processes, each with a shard of the weights (FSDP2)."""
    from envrl.engine.sharded import ShardedEngine

    return ShardedEngine(config, model, optimizer, run, poll, say)
