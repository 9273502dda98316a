"""Take an optimiser step only if loss and gradient are finite; otherwise skip it and save its batch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envrl import ranks
from envrl.engine.budget import Budget
from envrl.engine.loss_settings import LossSettings, OldLogprobs
from envrl.engine.optimizer import Optimizer
from envrl.engine.placement import HERE, Placement
from envrl.engine.update import accumulate, clip_gradient
from envrl.errors import RunError
from envrl.files import write_text
from envrl.models.load import LanguageModel
from envrl.models.out_of_memory import OutOfMemory, counted_memory
from envrl.types import LossTerm, Row

LARGEST_RUN_OF_SKIPS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """The metrics of one optimiser step (`skipped` is 1 if it was skipped) and the number of tokens that it ran."""

    figures: dict[str, float]
    tokens: int


class Guard:
    """Takes optimiser steps and counts the consecutive skipped ones."""

    def __init__(
        self,
        model: LanguageModel,
        optimizer: Optimizer,
        max_grad_norm: float,
        run: Path,
        say: Callable[[str], None],
        placement: Placement = HERE,
    ) -> None:
        self.model, self.optimizer, self.run, self.say, self.placement = model, optimizer, run, say, placement
        self.max_grad_norm = max_grad_norm
        self.budget = Budget(say)
        self.skips = 0

    def step(
        self,
        name: str,
        rows: Sequence[Row],
        settings: LossSettings,
        old: OldLogprobs | None = None,
        reference: OldLogprobs | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Take one step on the rows; if loss or gradient is not finite, only write `RUN/skipped/NAME.json`.

        If memory runs out, the gradient is dropped and computed again in smaller micro-batches. If `poll` raises,
        weights and moments stay as they were. Raises `RunError` for the third skip in a row, and if a single row or the
        optimiser's own work does not fit in memory.
        """
        try:
            totals, loss = self.budget.run(
                name,
                settings,
                lambda within: accumulate(self.model, rows, within, old, reference, poll, self.placement),
                self.optimizer.zero_grad,
            )
            norm = clip_gradient(list(self.model.parameters()), self.max_grad_norm, self.placement)
            if math.isfinite(loss) and math.isfinite(norm):
                self._change_weights(name)
                self.skips = 0
                return Outcome({**totals.figures(), "grad_norm": norm, "skipped": 0.0}, totals.tokens)
        finally:
            self.optimizer.zero_grad()
        numbers = {"loss": loss, "grad_norm": norm, **settings.weights}
        self._skip(name, rows, numbers, _blamed(totals.figures(), settings.weights), old, reference)
        return Outcome({"grad_norm": norm, "skipped": 1.0}, totals.tokens)

    def _change_weights(self, name: str) -> None:
        try:
            with counted_memory(1, 0):
                self.optimizer.step()
        except OutOfMemory:  # some weights may have changed already, so the step cannot be repeated
            raise RunError(
                f"memory ran out in {name} while the optimiser changed the weights; the last checkpoint is kept: train "
                "an adapter (model.lora_rank), set objective.kl_weight = 0, or take a smaller model"
            ) from None

    def _skip(
        self,
        name: str,
        rows: Sequence[Row],
        numbers: dict[str, float],
        blamed: str,
        old: OldLogprobs | None,
        reference: OldLogprobs | None,
    ) -> None:
        self.skips += 1
        file = self.run / "skipped" / f"{name}.json"
        file.parent.mkdir(exist_ok=True, parents=True)
        record = {key: _number(value) for key, value in numbers.items()}
        if ranks.is_first():
            write_text(file, json.dumps(record | {"rows": [_plain(row, old, reference) for row in rows]}) + "\n")
        if self.skips >= LARGEST_RUN_OF_SKIPS:
            raise RunError(
                f"{self.skips} batches in a row had a loss or gradient that is not finite{blamed} (the last: {file}); "
                "the weights are untouched: lower the learning rate or the auxiliary weights and start again"
            )
        self.say(
            f"{name}: the loss or its gradient is not finite{blamed}; the step is left out, its batch saved as {file}"
        )


def _blamed(figures: Mapping[str, float], weights: Mapping[str, float]) -> str:
    """Return which losses, times their weight, are not finite, as a part of a sentence; "" if each of them is."""
    losses = {key.removeprefix("loss/"): value for key, value in figures.items() if key.startswith("loss/")}
    named = [name for name, loss in losses.items() if not math.isfinite(loss * weights.get(name, 1.0))]
    return ", for " + ", ".join(f"{name} (weight {weights.get(name, 1.0):g})" for name in named) if named else ""


def _plain(row: Row, old: OldLogprobs | None, reference: OldLogprobs | None) -> dict[str, Any]:
    """Return everything that the loss of a row depends on, as JSON values."""
    tables = (("old_logprobs", old), ("reference_logprobs", reference))
    return {
        "origin": row.origin,
        "token_ids": row.token_ids.tolist(),
        "terms": [_plain_term(term) for term in row.terms],
        **{name: _numbers(table[row.origin]) for name, table in tables if table is not None and row.origin in table},
    }


def _plain_term(term: LossTerm) -> dict[str, Any]:
    return {
        "component": term.component,
        "token_count": _number(term.token_count),
        "positions": term.positions_T.tolist(),
        "weights": _numbers(term.weights_T),
        **{name: _numbers(values) for name, values in term.streams.items()},
        "allowed": term.allowed and [ids.tolist() for ids in np.split(term.allowed.values, term.allowed.offsets[1:-1])],
    }


def _numbers(values: np.ndarray) -> list[float | str]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | str:
    """Return a finite number, or the name of one that JSON cannot write: "nan", "inf", "-inf"."""
    return value if math.isfinite(value) else str(value)
