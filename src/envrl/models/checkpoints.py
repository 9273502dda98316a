"""Find and verify a run's checkpoints: folders named step-<number> with a manifest of every file's SHA-256."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from envrl.errors import UserError

MANIFEST = "manifest.json"
BASE = "base.json"
"""The file of a checkpoint that identifies the base model of its adapter."""
NAME = re.compile(r"step-(\d+)")


def holds_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter instead of a whole model."""
    return (folder / BASE).is_file()


def checkpoints(folder: Path) -> list[Path]:
    """Return the folder's checkpoints, oldest first, unverified; for one that was being replaced, the old one."""
    by_number: dict[int, Path] = {}
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []:
        match = NAME.fullmatch(path.name.removeprefix(".old-"))
        # "step-…" sorts after ".old-step-…", so reversed it comes first and wins.
        if match and path.is_dir() and not path.is_symlink():
            by_number.setdefault(int(match[1]), path)
    return [by_number[number] for number in sorted(by_number)]


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint, verified, or None if there is none; write nothing.

    Raises `UserError` if it is damaged, with what is wrong and what to remove to resume from the one before it.
    """
    damaged: list[Path] = []
    reason = ""
    for path in reversed(checkpoints(folder)):
        try:
            verify_checkpoint(path)
        except UserError as error:
            damaged.append(path)
            reason = reason or str(error)
            continue
        if not damaged:
            return path
        raise UserError(f"{reason}; remove {_names(damaged)} and run again with --resume to go on from {path.name}")
    if damaged:
        raise UserError(f"{reason}; no earlier one is whole: remove {_names(damaged)} and run again to start over")
    return None


def verify_checkpoint(path: Path) -> None:
    """Compare every file with the manifest; raise `UserError` with the first missing or altered one."""
    if not path.is_dir():
        raise UserError(f"there is no checkpoint at {path}")
    try:
        files = json.loads((path / MANIFEST).read_bytes())["files"]
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise UserError(f"the checkpoint {path} is damaged: {MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"the checkpoint {path} is damaged: {MANIFEST} is not readable") from None
    present = files_below(path)
    for name, (size, digest) in expected.items():
        if name not in present:
            raise UserError(f"the checkpoint {path} is damaged: {name} is missing")
        if present[name].stat().st_size != size:
            raise UserError(
                f"the checkpoint {path} is damaged: {name} has {present[name].stat().st_size} bytes instead of {size}"
            )
        if sha256(present[name]) != digest:
            raise UserError(f"the checkpoint {path} is damaged: the content of {name} was altered")


def files_below(folder: Path) -> dict[str, Path]:
    """Return all files below a folder by relative name, sorted."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def weights_hash(folder: Path) -> str:
    """Return a SHA-256 of a model: of its files' names and contents, without the trainer's state."""
    files = {name: path for name, path in files_below(folder).items() if name != MANIFEST and name[:6] != "state."}
    lines = [f"{sha256(path)} {name}" for name, path in files.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return a file's SHA-256 as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _names(paths: list[Path]) -> str:
    return " and ".join(str(path) for path in paths)
