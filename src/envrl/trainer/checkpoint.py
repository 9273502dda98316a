"""Checkpoints that are complete or absent: written aside, hashed, renamed; a damaged one is refused, never skipped.

checkpoints/step-000010/   what `write` made, and manifest.json: size and SHA-256 of every file
checkpoints/latest         a relative link to the newest
checkpoints/.tmp-*         of a writer that was killed: ignored, removed by the next one
checkpoints/.old-*         what a newer one of the same name was just replacing: put back if it never came
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envrl.errors import UserError
from envrl.trainer.files import sync_folder, write_json, writing

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d+)")


def save_checkpoint(folder: Path, name: str, write: Callable[[Path], None], keep: int) -> Path:
    """Save what `write(path)` puts into an empty folder as the checkpoint `name` ("step-000010"), and return its path.

    The `keep` newest stay, older ones go. Killed at any moment, every checkpoint that has a name is complete. Raises
    `RunError` where there is no room, with the checkpoints before it untouched and nothing left of the new one.
    """
    if not _NAME.fullmatch(name) or keep < 1:
        raise ValueError(f"a checkpoint is named step-<number> and at least one is kept, not {name!r} and {keep}")
    target = folder / name
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        clean_checkpoints(folder)
        save_folder(target, write)
        _point_latest(folder, name)
        for old in checkpoints(folder)[:-keep]:
            if old != target:
                _discard(old)
    return target


def save_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Make the folder `target` of what `write(path)` puts into an empty one, with a manifest; it appears whole."""
    aside = target.parent / f".tmp-{target.name}"
    with writing(target):
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            write(aside)
            write_json(aside / MANIFEST, {"files": _fingerprints(aside)})
            _sync_tree(aside)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        _move_into_place(aside, target)


def checkpoints(folder: Path) -> list[Path]:
    """Return the folder's checkpoints, oldest first, unverified; of one caught being replaced, the old one."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []:
        match = _NAME.fullmatch(path.name.removeprefix(".old-"))
        # "step-…" sorts after ".old-step-…", so reversed it comes first and wins.
        if match and path.is_dir() and not path.is_symlink():
            found.setdefault(int(match[1]), path)
    return [found[number] for number in sorted(found)]


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint, verified, or None where there is none; writes nothing.

    Raises `UserError` where it is damaged: it names what is wrong and what to remove to go on from the one before it.
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
    """Compare every file with the manifest; raises `UserError` that names the first missing or altered one."""
    if not path.is_dir():
        raise UserError(f"there is no checkpoint at {path}")
    try:
        files = json.loads((path / MANIFEST).read_bytes())["files"]
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise UserError(f"the checkpoint {path} is damaged: {MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"the checkpoint {path} is damaged: {MANIFEST} is not readable") from None
    present = _files(path)
    for name, (size, digest) in expected.items():
        if name not in present:
            raise UserError(f"the checkpoint {path} is damaged: {name} is missing")
        if present[name].stat().st_size != size:
            raise UserError(
                f"the checkpoint {path} is damaged: {name} has {present[name].stat().st_size} bytes instead of {size}"
            )
        if _sha256(present[name]) != digest:
            raise UserError(f"the checkpoint {path} is damaged: the content of {name} was altered")


def clean_checkpoints(folder: Path) -> None:
    """Remove what a killed writer left and put back what it was replacing; only for the process that writes the run."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".old-") and not (folder / path.name.removeprefix(".old-")).exists():
            os.rename(path, folder / path.name.removeprefix(".old-"))
        elif path.name.startswith((".old-", ".tmp-")):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def save_state(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write `path`.safetensors and `path`.json, without pickle; `meta` is what JSON has (tuples come back as lists)."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous()
        # safetensors refuses tensors that share memory (tied weights): each gets its own bytes in the file.
        shared = flat.untyped_storage().data_ptr() in seen
        seen.add(flat.untyped_storage().data_ptr())
        separate[name] = flat.clone() if shared else flat
    with writing(path):
        save_file(separate, _with_suffix(path, ".safetensors"))
        write_json(_with_suffix(path, ".json"), dict(meta))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote to the same path; tensors on the CPU. Raises `UserError` where one is missing."""
    from safetensors.torch import load_file

    for suffix in (".safetensors", ".json"):
        if not _with_suffix(path, suffix).is_file():
            raise UserError(f"the state {_with_suffix(path, suffix)} is missing")
    meta = json.loads(_with_suffix(path, ".json").read_text(encoding="utf-8"))
    return load_file(_with_suffix(path, ".safetensors")), meta


def _move_into_place(aside: Path, target: Path) -> None:
    """Rename; a folder cannot be renamed over a full one, so one of that name first steps aside (see `checkpoints`)."""
    old = target.parent / f".old-{target.name}"
    if target.exists():
        os.rename(target, old)
    os.rename(aside, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _point_latest(folder: Path, name: str) -> None:
    aside = folder / ".tmp-latest"
    os.symlink(name, aside)
    os.replace(aside, folder / "latest")
    sync_folder(folder)


def _discard(path: Path) -> None:
    """Remove a checkpoint; it loses its name first, so that a kill leaves no half-removed one to be found."""
    trash = path.parent / f".tmp-removed-{path.name}"
    os.rename(path, trash)
    shutil.rmtree(trash)


def _fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for name, path in _files(folder).items()
        if name != MANIFEST
    }


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _names(paths: list[Path]) -> str:
    return " and ".join(str(path) for path in paths)
