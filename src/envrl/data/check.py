"""Whether the data that lies somewhere is what it should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envrl.data.inspect import Part, home_of, parts_of, read_record
from envrl.data.sets import DataSet, RemoteFile
from envrl.errors import UserError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one part; `good` is None where it is not there and need not be."""

    name: str
    good: bool | None
    detail: str

    def __str__(self) -> str:
        return f"{ {True: 'pass', False: 'FAIL', None: '-   '}[self.good] }  {self.name:<24} {self.detail}"


@dataclass(frozen=True, slots=True)
class Findings:
    """The check of a data set: where it lies, what was said of each part, and the parts that are there."""

    home: Path
    verdicts: tuple[Verdict, ...]
    parts: dict[str, Part]
    recorded: bool

    @property
    def passed(self) -> bool:
        return all(verdict.good is not False for verdict in self.verdicts)


def check(data: DataSet, folder: Path) -> Findings:
    """Return what the data in a folder is, compared with what was recorded when it came, else with what is known.

    A file that is not the known one passes where it is whole and its count is right, and is named as another one.
    Raises `UserError` where nothing of the data set is there.
    """
    home = home_of(data, folder)
    record, parts = read_record(data, home), parts_of(data, home)
    if not parts:
        raise UserError(
            f"'{folder}' holds nothing of the data set '{data.name}'; get it with 'envrl data get {data.name}'"
        )
    verdicts = tuple(_verdicts(data, parts, record))
    return Findings(home, verdicts, parts, bool(record))


def _verdicts(data: DataSet, parts: dict[str, Part], record: dict[str, Part]) -> Iterator[Verdict]:
    known = {file.name: file for file in data.files if not file.is_archive}
    for name in known or data.counts:
        file = known.get(name)
        if name in parts:
            yield _judge(parts[name], file, data.counts.get(name, -1), record.get(name))
        elif name in record:
            yield Verdict(name, False, "was recorded when it came, and is not there any more")
        else:
            command = f"envrl data get {data.name}{' --full' if file and file.extra else ''}"
            needed = file.partner in parts if file else not record
            yield Verdict(name, False if needed else None, f"is not there ('{command}' gets it)")


def _judge(part: Part, file: RemoteFile | None, count: int, recorded: Part | None) -> Verdict:
    what = "games" if file is None else "entries"
    counted = f"{part.count:,} {what}, " if part.count >= 0 else ""
    counted += f"{part.left_out:,} more that cannot be played, " if part.left_out else ""
    seen = f"{counted}{part.bytes:,} bytes, SHA-256 {part.sha256[:16]}…"
    if part.problem:
        return Verdict(part.name, False, f"{part.problem} ({seen})")
    if recorded is not None and part.sha256 != recorded.sha256:
        return Verdict(
            part.name, False, f"changed since it was recorded, with SHA-256 {recorded.sha256[:16]}… ({seen})"
        )
    if recorded is None and count >= 0 and part.count != count:
        return Verdict(part.name, False, f"holds {part.count:,} {what}, not {count:,} ({seen})")
    if file and part.sha256 == file.sha256:
        return Verdict(part.name, True, f"{seen}: the known file")
    if recorded is not None:
        return Verdict(part.name, True, f"{seen}: as recorded when it came")
    if file is None:
        return Verdict(part.name, True, f"{seen}: all there; nothing was recorded to compare the content with")
    if not file.sha256:
        return Verdict(part.name, True, f"{seen}: whole; no hash is known, and none was recorded")
    return Verdict(
        part.name, True, f"{seen}: not the known file ({file.bytes:,} bytes, {file.sha256[:16]}…), but whole"
    )
