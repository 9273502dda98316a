"""The engine of a run whose weights stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from envrl.engine.local import LocalEngine
from envrl.types import Row


class FrozenEngine(LocalEngine):
    """Publishes the weights and takes no optimiser steps."""

    def step(self, rows: Sequence[Row], weights: Mapping[str, float], update: int) -> dict[str, float]:
        """Return no metrics: there was no step."""
        return {}
