"""One file over HTTP, or from a folder, into `NAME.part`: resumed where it was left, tried again where the line fails.

`NAME.part` is what has come so far; `NAME.part.json` is from where, and the mark (ETag or date) by which the server
names this version of the file, so that halves of two versions are not taken for one file.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from envrl.errors import RunError, UserError

_CHUNK = 2**18
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 60.0


class Tell(Protocol):
    """Who is told how a download goes."""

    def show(self, name: str, done: int, total: int) -> None:
        """Say how many bytes of a file have come, of how many (0: unknown)."""
        ...

    def say(self, text: str) -> None:
        """Say something once."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds without a byte that end a try; failed tries in a row; seconds before the second, doubled each time."""

    stall: float = 30.0
    tries: int = 6
    pause: float = 1.0


class _Broken(Exception):
    """A try that ended early; another may go on from there, after `pause` seconds at least."""

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.pause = pause


def part_of(target: Path) -> Path:
    """Return where a file lies while it comes."""
    return target.with_name(f"{target.name}.part")


def fetch(address: str, target: Path, patience: Patience, tell: Tell, *, blind: bool = False) -> bool:
    """Bring `target`'s .part file to its end, unverified, and return whether it was joined from two answers.

    `address` is a URL or a file. `blind` joins halves also where the server does not say which version of the file it
    sends: only where the whole is verified by a hash. Raises `UserError` for an address that is neither, `RunError`
    where the server refuses or the line keeps failing: then the .part file stays, and the next call goes on from it.
    """
    part = part_of(target)
    if not address.startswith(("http://", "https://")):
        _copy(Path(address), part, tell, target.name)
        return False
    failures, joined = 0, False
    while True:
        before = _size(part)
        try:
            show = lambda done, total: tell.show(target.name, done, total)  # noqa: E731
            return _receive(address, part, patience.stall, show, blind) or joined
        except (_Broken, OSError, http.client.HTTPException) as error:
            grown = _size(part) > before
            joined, failures = joined or bool(before and grown), 1 if grown else failures + 1
            if failures >= patience.tries:
                raise RunError(
                    f"{address} failed {failures} times in a row, at last with '{_reason(error)}'; {part} keeps the "
                    f"{_size(part):,} bytes that came, and the same command goes on from there"
                ) from error
            asked = error.pause if isinstance(error, _Broken) else 0.0
            pause = min(max(asked, patience.pause * 2 ** (failures - 1)), _LONGEST_PAUSE)
            tell.say(f"{target.name}: {_reason(error)}; try {failures + 1} of {patience.tries} in {pause:.0f} s")
            time.sleep(pause)


def forget(target: Path) -> None:
    """Remove what has come of a file."""
    part_of(target).unlink(missing_ok=True)
    _mark_file(part_of(target)).unlink(missing_ok=True)


def _receive(address: str, part: Path, stall: float, show: Callable[[int, int], None], blind: bool) -> bool:
    """Ask for what is missing and append it; return whether it was appended; raises `_Broken` where it ends early."""
    offset = _size(part)
    mark = _read_mark(part, address)
    headers = {"User-Agent": "envrl", "Accept-Encoding": "identity"}
    if offset and mark is not None and (mark or blind):
        headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": mark} if mark else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=stall)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and error.headers.get("Content-Range", "") == f"bytes */{offset}":
                return False
            raise _refusal(address, error, part) from error
    except (ValueError, http.client.InvalidURL) as error:
        raise UserError(f"'{address}' is no address of a file: {error}") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise RunError(
                f"{address} answered with a web page in place of the file: its server wants a person, or has reached a "
                "limit; try again later, or get the file by hand and use --from FOLDER"
            )
        start, total = _range(response, offset)
        if start == 0:
            _write_mark(part, address, response.headers)
        done = _append(response, part, start, lambda done: show(done, total))
        if total and done != total:
            raise _Broken(f"the connection ended after {done:,} of {total:,} bytes")
    return start > 0


def _append(response: http.client.HTTPResponse, part: Path, done: int, show: Callable[[int], None]) -> int:
    """Write what comes as it comes, so that a kill loses none of it; return the file's length."""
    show(done)
    with open(part, "r+b" if done else "wb", buffering=0) as file:
        file.seek(done)
        while chunk := response.read1(_CHUNK):
            try:
                file.write(chunk)
            except OSError as error:
                raise RunError(f"cannot write {part}: {error.strerror}; make room, and call again") from error
            done += len(chunk)
            show(done)
    return done


def _range(response: http.client.HTTPResponse, offset: int) -> tuple[int, int]:
    """Return from where the answer's bytes count, and the whole file's size (0: not said)."""
    said = response.headers.get("Content-Length", "")
    length = int(said) if said.isdecimal() else 0
    if response.status != 206:
        return 0, length
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != offset:
        raise _Broken("the server sent another part of the file than the one asked for")
    return offset, int(found[2]) if found[2] != "*" else offset + length


def _refusal(address: str, error: urllib.error.HTTPError, part: Path) -> Exception:
    """Return what an answer other than the file means: another try, or the end."""
    if error.code == 416:  # what lies here does not fit the file
        part.unlink(missing_ok=True)
        return _Broken("what came before does not fit the file")
    if error.code in _RETRIED:
        wait = error.headers.get("Retry-After", "")
        return _Broken(f"{error.code} {error.reason}", float(wait) if wait.isdecimal() else 0.0)
    return RunError(
        f"{address} answers '{error.code} {error.reason}': name a folder or a mirror that has it with --from"
    )


def _copy(source: Path, part: Path, tell: Tell, name: str) -> None:
    if not source.is_file():
        raise UserError(f"there is no file '{source}'; --from names the folder or the address that holds it")
    total = source.stat().st_size
    with open(source, "rb") as reader, open(part, "wb") as writer:
        done = 0
        while chunk := reader.read(2**22):
            writer.write(chunk)
            done += len(chunk)
            tell.show(name, done, total)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _mark_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_mark(part: Path, address: str, headers: Any) -> None:
    etag, date = headers.get("ETag", ""), headers.get("Last-Modified", "")
    mark = etag if etag and not etag.startswith("W/") else date  # a weak tag says nothing about bytes
    part.unlink(missing_ok=True)  # never a mark beside bytes of another version
    _mark_file(part).write_text(json.dumps({"address": address, "mark": mark}), encoding="utf-8")


def _read_mark(part: Path, address: str) -> str | None:
    """Return the mark of what lies here, empty where the server gave none, or None where it came from elsewhere."""
    try:
        record = json.loads(_mark_file(part).read_bytes())
        return str(record["mark"]) if record["address"] == address else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came any more"
    reason = getattr(error, "reason", None)
    return "nothing came any more" if isinstance(reason, TimeoutError) else str(reason or error)


def sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
