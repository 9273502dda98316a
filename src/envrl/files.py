"""Writing a run's files so that a kill or a full disk at any moment leaves nothing half written in its place."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from envrl.errors import RunError, UserError
from envrl.locks import held

_NO_ROOM = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk quota used up",
    errno.EFBIG: "largest allowed file size reached",
}


class JsonLines:
    """A file of one JSON object a line that is only ever appended to, or cut back to an earlier offset on resume."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    @property
    def offset(self) -> int:
        """The file's length in bytes: what a checkpoint stores, after `sync`, and `truncate` goes back to."""
        return os.fstat(self._file).st_size

    def append(self, record: Mapping[str, Any], *, sync: bool = False) -> None:
        """Write one line, whole or not at all; numbers that are not finite become null.

        With `sync` the line is on the disk when this returns. Raises `RunError` where there is no room for it.
        """
        line = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False) + "\n"
        start = self.offset
        with writing(self.path):
            try:
                _write_all(self._file, line.encode("utf-8", "backslashreplace"))
            except OSError:
                os.ftruncate(self._file, start)
                raise
        if sync:
            self.sync()

    def sync(self) -> None:
        """Wait until everything appended so far is on the disk."""
        with writing(self.path):
            os.fsync(self._file)

    def truncate(self, offset: int) -> None:
        """Drop everything after the first `offset` bytes; raises `UserError` where the file holds fewer."""
        if self.offset < offset:
            raise UserError(
                f"{self.path} holds {self.offset} bytes where the checkpoint knows of {offset}: lines were removed "
                "from it; restore the file, or start a new run"
            )
        os.ftruncate(self._file, offset)
        self.sync()

    def close(self) -> None:
        os.close(self._file)


class NoLines(JsonLines):
    """Takes lines and writes none: of several processes that train one run, the first writes the files."""

    def __init__(self) -> None: ...

    @property
    def offset(self) -> int:
        return 0

    def append(self, record: Mapping[str, Any], *, sync: bool = False) -> None: ...

    def sync(self) -> None: ...

    def truncate(self, offset: int) -> None: ...

    def close(self) -> None: ...


def write_text(path: Path, text: str) -> None:
    """Write the file whole: readers see the old content or the new, also after a kill; raises `RunError` if not."""
    aside = path.parent / f".tmp-{path.name}"
    with writing(path):
        try:
            # A world's text may hold half of a surrogate pair, which UTF-8 cannot; in JSON its escape means the same.
            with open(aside, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync_folder(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write the value as indented JSON, as `write_text` does; floats and integers of any size read back equal."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def create_run(run: Path, config_toml: str, others: Mapping[str, str] | None = None) -> None:
    """Make the run directory with its `config.toml` and `others` (name to text); it appears whole, or not at all.

    Raises `UserError` where something of that name exists or the folder above it cannot be written to.
    """
    check_new_run(run)
    aside = run.parent / f".tmp-{run.name}"
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name, text in {"config.toml": config_toml, **(others or {})}.items():
            write_text(aside / name, text)
        os.rename(aside, run)
        sync_folder(run.parent)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno not in _NO_ROOM:
            raise UserError(f"cannot make the run directory {run}: {error.strerror}") from error
        if isinstance(error, OSError):
            raise RunError(_no_room(_NO_ROOM[error.errno or 0], run)) from error
        raise


def writable_folder(folder: Path, advice: str = "") -> None:
    """Make a folder where there is none; raises `UserError`, with some advice, where nothing can be put there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write in {folder}{advice}")


def check_room(what: str, needed: int, folder: Path) -> None:
    """Raise `RunError` where the disk of a folder, which need not exist yet, has less than the bytes `needed`."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunError(f"{what} needs {needed:,} bytes in {folder}, where {free:,} are free")


def check_new_run(run: Path) -> None:
    """Raise `UserError` where something stands in the place of a new run."""
    if run.exists() and not (run / "config.toml").is_file():
        raise UserError(f"{run} exists and is not a run: name another directory with --run")
    if run.exists() or run.is_symlink():
        raise UserError(f"{run} exists: add --resume to go on with that run, or name another directory with --run")


def lock_run(run: Path) -> AbstractContextManager[None]:
    """Hold the run for this process, until it ends, however it ends; raises `UserError` where another one holds it."""
    refusal = f"another process is training in {run}: wait for it, or name another directory"
    return held(run / "config.toml", refusal)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while writing `path` into a `RunError` that says from where the run can go on."""
    try:
        yield
    except Exception as error:
        # A write inside this one has named its own, temporary, file: the outermost name is the one that the user knows.
        cause = error.__cause__ if isinstance(error, RunError) and error.__cause__ else error
        number = _error_number(cause)
        if number in _NO_ROOM:
            raise RunError(_no_room(_NO_ROOM[number], path)) from cause
        if isinstance(cause, OSError):
            raise RunError(f"cannot write {path}: {cause.strerror or cause}; {_way_on(path)}") from cause
        raise


def sync_folder(folder: Path) -> None:
    """Wait until the folder's names (files made, renamed, removed) are on the disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Some network file systems refuse to sync a folder: then the rename is as safe as they make it.
        with suppress(OSError):
            os.fsync(file)
    finally:
        os.close(file)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _finite(value: Any) -> Any:
    """Return the value as JSON has it: NumPy numbers as Python's, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _error_number(error: BaseException) -> int:
    """Return the system's error number; safetensors and tokenizers give it only in their text."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else 0


def _no_room(what: str, path: Path) -> str:
    return f"{what} while writing {path}; {_way_on(path)}"


def _way_on(path: Path) -> str:
    """Say what the user can do, by the nearest `latest` at or above the path (a run is at most three folders deep)."""
    for folder in [path, *path.parents][:4]:
        for latest in (folder / "latest", folder / "checkpoints" / "latest"):
            if latest.is_symlink() and latest.exists():
                good = latest.parent / os.readlink(latest)
                return f"the last good checkpoint is {good}: free space and go on with --resume"
    return "there is no checkpoint yet: free space and start again"
