"""Where every episode of a run lies: file and byte offset, with what a list of episodes shows and filters by.

Opening an episode reads one line. A file that grows is read on from where the last whole line ended.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from envrl.report.episode import steps_of
from envrl.report.failures import failure_of, goal_of
from envrl.report.read import number, record_of

_NAMES = {
    "trajectories": re.compile(r"(?:update-(?P<update>\d+)|eval-(?P<eval>\d+)-(?P<split>.+))\.jsonl"),
    "eval": re.compile(r"(?P<eval>\d+)-(?P<split>.+)\.jsonl"),
}


class Row(NamedTuple):
    """What the list shows of an episode; `offset` is where its line begins in the file."""

    offset: int
    task: str
    kind: str
    goal: str
    member: int
    success: bool
    turns: int
    score: float | None
    failure: str
    free: bool
    """Whether it was played without the run's restriction to admissible commands."""


@dataclass(slots=True)
class EpisodeFile:
    """One file of episodes: those of an update's own play (`split` is None), or of an evaluation after it."""

    path: Path
    name: str
    update: int
    split: str | None
    rows: list[Row] = field(default_factory=list)
    read: int = 0
    """Bytes that were read: up to the end of the last whole line."""
    lines: int = 0
    size: int = 0

    def grow(self, restricted: bool) -> None:
        """Read what was written since the last call; a file that shrank was written anew."""
        self.size = self.path.stat().st_size
        if self.size < self.read:
            self.read, self.lines, self.rows = 0, 0, []
        with open(self.path, "rb") as file:
            file.seek(self.read)
            while (line := file.readline()).endswith(b"\n"):
                self.lines += 1
                record = record_of(line, f"line {self.lines} of {self.path}")
                if "steps" in record:
                    self.rows.append(_row(record, self.read, restricted))
                self.read += len(line)


class EpisodeIndex:
    """The episodes of a run, in the files `trajectories/*.jsonl` and `eval/*.jsonl`."""

    def __init__(self, run: Path, restricted: bool) -> None:
        """`restricted`: the run's own play is restricted to admissible commands; free play is something else then."""
        self.run, self.restricted = run, restricted
        self._files: dict[str, EpisodeFile] = {}
        self._lock = threading.Lock()

    def refresh(self) -> list[EpisodeFile]:
        """Read what is new and return all files: training first, then evaluations, each in the order of updates.

        Raises `UserError` where a line is no JSON object.
        """
        with self._lock:
            found = {file.name: self._files.get(file.name, file) for file in _files_of(self.run)}
            for file in found.values():
                file.grow(self.restricted)
            self._files = found
            return sorted(found.values(), key=lambda file: (file.split or "", file.update, file.name))

    def rows(self) -> list[tuple[EpisodeFile, Row]]:
        """Return every episode once: one in `trajectories/`, which says more, in place of the same one in `eval/`."""
        files = self.refresh()
        told = {
            (file.update, file.split, row.task, row.member)
            for file in files
            if file.name.startswith("trajectories/")
            for row in file.rows
        }
        return [
            (file, row)
            for file in files
            for row in file.rows
            if file.name.startswith("trajectories/")
            or row.free
            or (file.update, file.split, row.task, row.member) not in told
        ]

    def read(self, name: str, offset: int) -> Mapping[str, Any]:
        """Return the record of one episode; raises `KeyError` where none begins there."""
        if name not in self._files:
            self.refresh()
        file = self._files[name]
        if not any(row.offset == offset for row in file.rows):
            raise KeyError(name)
        with open(file.path, "rb") as lines:
            lines.seek(offset)
            return record_of(lines.readline(), f"the line at byte {offset} of {file.path}")

    def search(self, words: str) -> Iterator[tuple[str, int]]:
        """Yield (file, offset) of the episodes whose texts hold every one of these words, in any case."""
        wanted = words.lower().split()
        plain = [word.encode() for word in wanted if word.isascii() and word.isalnum()]  # never escaped in JSON
        for file in self.refresh():
            with open(file.path, "rb") as lines:
                for row in file.rows:
                    lines.seek(row.offset)
                    line = lines.readline()
                    lower = line.lower()
                    if not all(word in lower for word in plain):
                        continue  # it is not parsed, which takes ten times as long
                    if holds(record_of(line, f"the line at byte {row.offset} of {file.path}"), wanted):
                        yield file.name, row.offset


def holds(record: Mapping[str, Any], wanted: list[str]) -> bool:
    """Return whether an episode's task and its steps' texts hold every one of these lower-case words."""
    steps = steps_of(record)
    keys = ("observation", "response", "action", "predicted_observation", "predicted_action")
    texts = [str(record.get("task", "")), *(str(step.get(key, "")) for step in steps for key in keys)]
    texts += [str(steps[-1]["next_observation"])] if steps else []
    text = "\n".join(texts).lower()
    return all(word in text for word in wanted)


def _row(record: Mapping[str, Any], offset: int, restricted: bool) -> Row:
    steps = steps_of(record)
    return Row(
        offset,
        str(record.get("task", "")),
        str(record.get("kind", "")),
        goal_of(steps),
        int(number(record, "member") or 0),
        bool(record.get("success")),
        len(steps),
        number(record, "return"),
        failure_of(record, steps),
        restricted and record.get("actions") == "free",
    )


def _files_of(run: Path) -> Iterator[EpisodeFile]:
    for folder, form in _NAMES.items():
        for path in sorted((run / folder).glob("*.jsonl")):
            match = form.fullmatch(path.name)
            if match and path.is_file() and path.resolve().is_relative_to(run.resolve()):
                named = match.groupdict()
                update = named.get("update") or named["eval"]
                yield EpisodeFile(path, f"{folder}/{path.name}", int(update), named.get("split"))
