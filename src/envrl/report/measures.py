"""A metric of runs as figures: at the end, on the way, and until a level is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envrl.errors import UserError, suggest
from envrl.report.read import Record, RunData, number, series

SUCCESS = "success_rate"
UPDATES = "updates"
"""What stands in place of a split where the metric is one of the updates."""
_TAIL = 0.1
"""The share of the updates, the last ones, whose mean is the end of an update's metric: a single update is noise."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric by its name: of evaluations, a figure a split, or of updates."""

    name: str
    of_updates: bool

    @property
    def is_rate(self) -> bool:
        """Whether it is shown in percent."""
        return self.name.endswith(("rate", "accuracy"))

    @property
    def higher_is_better(self) -> bool:
        """Whether a probability of being higher is one of improvement."""
        return self.name.rpartition("/")[2] in (SUCCESS, "score", "return")

    def curve(self, run: RunData, split: str) -> list[tuple[float, float]]:
        """Return a run's (update, value)."""
        records: Sequence[Record] = run.metrics if self.of_updates else run.evals.get(split, ())
        return series(records, "update", self.name)

    def end(self, curve: Sequence[tuple[float, float]], update: float) -> float:
        """Return the value at an update; of a metric of updates the mean of the tenth before it."""
        if not self.of_updates:
            return dict(curve)[update]
        tail = [y for x, y in curve if update * (1 - _TAIL) < x <= update]
        return sum(tail) / len(tail)


def find_metric(name: str, runs: Sequence[RunData]) -> Metric:
    """Return the metric of a name that some run logged; raise `UserError`, with the nearest one, where none did."""
    evaluated = [record for run in runs for records in run.evals.values() for record in records]
    trained = [record for run in runs for record in run.metrics]
    known = {key for record in [*evaluated, *trained] for key in record if number(record, key) is not None}
    if name not in known:
        raise UserError(f"none of the runs logged '{name}'{suggest(name, known - {'update'})}")
    return Metric(name, not any(number(record, name) is not None for record in evaluated))


def steps_at(run: RunData, update: float) -> float | None:
    """Return the environment steps that a run had taken at an update."""
    return dict(series(run.metrics, "update", "env_steps")).get(update, 0.0 if update == 0 else None)
