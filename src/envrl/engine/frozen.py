"""The engine of a run whose weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from envrl.config.schema import Config
from envrl.engine.local import LocalEngine
from envrl.engine.optimizer import Optimizer
from envrl.models.load import LanguageModel
from envrl.types import Row


class FrozenEngine(LocalEngine):
    """Publishes the weights and takes no optimiser steps; it loads neither a reference nor teachers."""

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        optimizer: Optimizer,
        run: Path,
        poll: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        still = replace(config, objective=replace(config.objective, kl_weight=0.0))
        super().__init__(still, model, optimizer, run, poll, say, teachers={})

    def step(self, rows: Sequence[Row], weights: Mapping[str, float], update: int) -> dict[str, float]:
        """Return no metrics: there was no step."""
        return {}
