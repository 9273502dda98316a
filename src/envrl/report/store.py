"""A run as the page asks for it: its overview, its list of episodes, one episode, a search; always as it is now."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envrl.report.episode import readable
from envrl.report.episode_index import EpisodeIndex
from envrl.report.overview import episode_rows, overview
from envrl.report.read import RunData, load_run, setting

_LINES = ("metrics.jsonl", "eval.jsonl", "warm_start.jsonl")


class RunStore:
    """One run's files behind the page; a run that is still going is read on at every question."""

    def __init__(self, path: Path, *, empty: bool = False) -> None:
        """Raise `UserError` where the directory is no run or, unless `empty` is allowed, holds nothing yet."""
        self.path, self._empty = path, empty
        config = load_run(path, empty=empty).config
        self.index = EpisodeIndex(path, setting(config, "rollout.actions") == "admissible")

    def stamp(self) -> str:
        """Return a text that changes when a file of the run does."""
        files = [self.path / name for name in _LINES]
        files += [path for folder in ("eval", "trajectories") for path in sorted((self.path / folder).glob("*.jsonl"))]
        states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
        return hashlib.sha256(repr(states).encode()).hexdigest()[:16]

    def load(self) -> RunData:
        """Return the run's records as they are now."""
        return load_run(self.path, empty=self._empty)

    def overview(self) -> dict[str, Any]:
        """Return what the first page shows, the notes on files that end in half a line among it."""
        return overview(self.load()) | {"stamp": self.stamp(), "notes": self.notes()}

    def notes(self) -> list[str]:
        """Return a sentence for each file whose last line is not whole."""
        rows = self.index.refresh()
        cut = [name for name in _LINES if ends_half_way(self.path / name)]
        cut += [file.name for file in rows if file.read < file.size]
        return [f"{name} ends in half a line: it is shown up to its last whole line." for name in cut]

    def episodes(self) -> dict[str, Any]:
        """Return the list of all episodes."""
        return episode_rows(self.index.rows())

    def episode(self, name: str, offset: int) -> dict[str, Any]:
        """Return one episode to read; raises `KeyError` where there is none."""
        return readable(self.index.read(name, offset))

    def search(self, words: str) -> list[str]:
        """Return the ids of the episodes whose texts hold all the words."""
        return [f"{name}@{offset}" for name, offset in self.index.search(words)]


def ends_half_way(path: Path) -> bool:
    """Return whether a file's last line has no end."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read() != b"\n"


def labels(paths: Sequence[Path]) -> list[str]:
    """Return a short name for each run: the shortest ends of their paths by which they differ."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=1)):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
