"""Getting a data set: every file comes aside, is verified, and only then has its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from envrl.data.fetch import Patience, Tell, fetch, forget, part_of, sync
from envrl.data.inspect import Part, home_of, parts_of, products, read_record, write_record
from envrl.data.sets import DataSet, RemoteFile
from envrl.data.unpack import move_into, unpack
from envrl.envs.data import size_and_sha256
from envrl.errors import RunError, UserError
from envrl.files import check_room, writable_folder
from envrl.locks import held


@dataclass(frozen=True, slots=True)
class Wish:
    """How to get a data set: from where (empty: the original), large files too, what is known alone, how patiently."""

    source: str = ""
    full: bool = False
    verified: bool = True
    patience: Patience = field(default_factory=Patience)


def get(data: DataSet, folder: Path, wish: Wish, tell: Tell) -> Path:
    """Get what is missing of a data set into a folder, record it there, and return the folder that it lies in.

    What is there and right stays as it is. A file that is not right is never replaced; games are, one by one. Raises
    `UserError` where something else is there or a source does not exist, `RunError` where a download fails or is not
    what it should be.
    """
    writable_folder(folder, ": name another folder with --data")
    home = home_of(data, folder)
    with held(home, f"another process is getting data into {home}: wait for it"):
        for file in data.files:
            if file.extra and not wish.full:
                continue
            there = _is_there(data, home, file)
            if not there:
                _bring(data, home, file, wish, tell)
            tell.say(f"{file.name}: {'is here' if there else 'done'}")
    return home


def _is_there(data: DataSet, home: Path, file: RemoteFile) -> bool:
    """Return whether a file, or what an archive unpacks to, is there; raises `UserError` where something else is."""
    if file.is_archive:
        parts, record = parts_of(data, home), read_record(data, home)
        expected = {name: part.count for name, part in record.items()} or dict(data.counts)
        return all(name in parts and _is_right(parts[name], count, record) for name, count in expected.items())
    path = home / file.name
    if not path.exists():
        return False
    part, recorded = products(path), read_record(data, home).get(file.name)
    if part.sha256 not in (file.sha256, recorded.sha256 if recorded else file.sha256):
        raise UserError(
            f"{path} is there, and is not the file that is known or was recorded: move it away to get that one, or "
            f"keep it with 'envrl data check {data.name} --record'"
        )
    if recorded is None:
        write_record(data, home, {file.name: part})
    return True


def _is_right(part: Part, count: int, record: Mapping[str, Part]) -> bool:
    known = record.get(part.name)
    return part.count == count and (known is None or known.sha256 == part.sha256)


def _bring(data: DataSet, home: Path, file: RemoteFile, wish: Wish, tell: Tell) -> None:
    """Download, verify, unpack, put in place, record."""
    target, address = home / file.name, _address(file, wish.source)
    part = part_of(target)
    resumed = part.exists()
    _check_room(home, file, part)
    while True:
        joined = fetch(address, target, wish.patience, tell, blind=wish.verified and bool(file.sha256))
        wrong = _difference(part, file) if wish.verified else ""
        if not wrong:
            break
        forget(target)
        if not (resumed or joined):
            raise RunError(
                f"what came from {address} {wrong}: it was altered on the way, or is another version; nothing of it is "
                "kept, and --unverified would take it as it is"
            )
        tell.say(f"{file.name}: the parts that came do not belong together; once more from the beginning")
        resumed = False
    sync(part)
    place = _place_archive if file.is_archive else _place_file
    place(data, home, target, part, wish)
    forget(target)


def _place_file(data: DataSet, home: Path, target: Path, part: Path, wish: Wish) -> None:
    came = products(part)
    expected = data.counts.get(target.name, came.count)
    wrong = came.problem or (f"holds {came.count:,} entries, not {expected:,}" if came.count != expected else "")
    if wrong and (wish.verified or came.problem):
        forget(target)
        raise RunError(f"what came as {target.name} {wrong}; nothing of it is kept")
    os.replace(part, target)
    write_record(data, home, {target.name: Part(target.name, came.bytes, came.sha256, came.count)})


def _place_archive(data: DataSet, home: Path, target: Path, part: Path, wish: Wish) -> None:
    aside = home / f".unpacking-{target.name}"
    try:
        unpack(part, aside)
        came = parts_of(data, aside)
        for name, count in data.counts.items():
            found = came.get(name, Part(name, 0, "", 0))
            if wish.verified and found.count != count:
                raise RunError(f"{target.name} holds {found.count:,} games in {name}, not {count:,}; nothing is kept")
        if not came or not all(part.count for part in came.values()):
            raise RunError(f"{target.name} holds no games; nothing of it is kept")
        move_into(aside, home)
    except RunError:
        forget(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    write_record(data, home, came)


def _address(file: RemoteFile, source: str) -> str:
    if not source:
        return file.url
    if source.startswith(("http://", "https://")):
        return f"{source.rstrip('/')}/{file.name}"
    folder = Path(os.path.expanduser(source))
    if not folder.is_dir():
        raise UserError(f"--from '{source}' is neither a folder nor an address that begins with http:// or https://")
    return str(folder / file.name)


def _check_room(home: Path, file: RemoteFile, part: Path) -> None:
    times = 12 if file.is_archive else 1  # the games take ten times their archive
    check_room(file.name, times * file.bytes - (part.stat().st_size if part.exists() else 0), home)


def _difference(part: Path, file: RemoteFile) -> str:
    size, digest = size_and_sha256(part)
    if file.bytes and size != file.bytes:
        return f"has {size:,} bytes, not {file.bytes:,}"
    if file.sha256 and digest != file.sha256:
        return f"has the SHA-256 {digest}, not {file.sha256}"
    return ""
