"""The progress of a run as lines, from its files, so that any process can watch it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envrl.report.read import Record, interval, number, record_of
from envrl.report.summary import duration

_SHOWN = {
    "train/success_rate": "success",
    "entropy": "entropy",
    "loss/imitation": "loss",
    "held_out/imitation": "held-out",
    "held_out/action_accuracy": "actions right",
    "budget_spent": "of the budget",
}


@dataclass(slots=True)
class Growing:
    """A JSON-lines file that is read on from where its last whole line ended."""

    path: Path
    read: int = 0
    lines: int = 0

    def new(self) -> list[Record]:
        """Return the records that were written since the last call; of a file that was cut back, those after the cut.

        Raises `UserError` if a line is no JSON object.
        """
        if not self.path.is_file():
            return []
        self.read = min(self.read, self.path.stat().st_size)  # a resumed run cuts its files back
        found = []
        with open(self.path, "rb") as file:
            file.seek(self.read)
            while (line := file.readline()).endswith(b"\n"):
                self.lines += 1
                found.append(record_of(line, f"line {self.lines} of {self.path}"))
                self.read += len(line)
        return found


@dataclass(slots=True)
class Progress:
    """What a run has to tell, line by line: its warm start, its updates, its evaluations."""

    run: Path
    updates: int
    _files: dict[str, Growing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._files = {name: Growing(self.run / f"{name}.jsonl") for name in ("warm_start", "metrics", "eval")}

    def new(self) -> list[tuple[str, Record]]:
        """Return (file, record) of what was written since the last call, in the order in which it happened."""
        found = [(name, record) for name, file in self._files.items() for record in file.new()]
        return sorted(found, key=lambda each: _moment(*each))

    def lines(self, told: Sequence[tuple[str, Record]]) -> list[str]:
        """Return the lines that tell it; of the warm start those steps that end an epoch, and the last one."""
        lines = []
        for place, (name, record) in enumerate(told, 1):
            if name == "metrics":
                lines.append(_update_line(record, self.updates))
            elif name == "eval":
                lines.append(_evaluation_line(record))
            elif place == len(told) or told[place][0] != name or any(key.startswith("held_out/") for key in record):
                lines.append(f"warm start, step {number(record, 'step') or 0:.0f}  {figures(record)}")
        return lines


def _moment(name: str, record: Record) -> float:
    """Return what sorts records as they happened: an evaluation comes after its update."""
    return -1.0 if name == "warm_start" else _update(record) + (0.5 if name == "eval" else 0.0)


def figures(record: Record) -> str:
    """Return a record's losses, except the policy's, and the rest of a progress line: "state 1.92  success 0.34"."""
    losses = {key: key.removeprefix("loss/") for key in record if key.startswith("loss/") and key != "loss/policy"}
    known = [(short, number(record, key)) for key, short in (losses | _SHOWN).items()]
    return "  ".join(f"{short} {value:.3g}" for short, value in known if value is not None)


def _update_line(record: Record, updates: int) -> str:
    spent = number(record, "seconds > total")
    took = f"  ({duration(spent)})" if spent else ""
    return f"update {_update(record):.0f}/{updates}  {figures(record)}{took}"


def _evaluation_line(record: Record) -> str:
    bounds = interval(record)
    between = f"95 % interval {100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %, " if bounds else ""
    rate = f"{100 * (number(record, 'success_rate') or 0.0):.1f} %"
    episodes = number(record, "episodes") or 0
    played = f"{episodes:.0f} episode{'s' * (episodes != 1)}"
    return f"update {_update(record):.0f}, {record.get('split', '')}: success {rate} ({between}{played})"


def _update(record: Record) -> float:
    return number(record, "update") or 0.0
