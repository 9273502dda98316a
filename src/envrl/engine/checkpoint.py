"""Atomic checkpoints: written to a temporary folder, hashed, renamed. A damaged one is refused, never skipped.

checkpoints/step-000010/   the files that `write` made, and manifest.json: size and SHA-256 of every file
checkpoints/latest         a relative link to the newest checkpoint
checkpoints/.tmp-*         left by a killed writer: ignored, and removed by the next writer
checkpoints/.old-*         a checkpoint that was being replaced by one of the same name: restored if that is missing
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envrl import ranks
from envrl.errors import UserError
from envrl.files import sync_folder, write_json, writing
from envrl.models.checkpoints import (
    MANIFEST,
    NAME,
    checkpoints,
    files_below,
    latest_checkpoint,
    sha256,
    verify_checkpoint,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MANIFEST",
    "checkpoints",
    "clean_checkpoints",
    "latest_checkpoint",
    "load_state",
    "save_checkpoint",
    "save_folder",
    "save_state",
    "settle_checkpoints",
    "verify_checkpoint",
]


class Due:
    """Says when to save: every so many steps, and so many minutes after the last time; all processes alike."""

    def __init__(self, every: int, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._seconds, self._clock = every, 60.0 * minutes, clock
        self._last = clock()

    def __call__(self, step: int) -> bool:
        """Return whether it is time, after this step; all processes call this at the same point."""
        late = ranks.of_first(lambda: self._clock() - self._last >= self._seconds)
        if due := late or step % self._every == 0:
            self._last = self._clock()
        return due


def save_checkpoint(folder: Path, name: str, write: Callable[[Path], None], keep: int) -> Path:
    """Save what `write(path)` puts into an empty folder as checkpoint `name` ("step-000010"); return its path.

    The `keep` newest stay, older ones are removed. A kill at any moment leaves only complete checkpoints under their
    names. Raises `RunError` if the disk is full; earlier checkpoints then stay, and nothing of the new one is left.
    """
    if not NAME.fullmatch(name) or keep < 1:
        raise ValueError(f"a checkpoint is named step-<number> and at least one is kept, not {name!r} and {keep}")
    target = folder / name
    with writing(target):
        folder.mkdir(parents=True, exist_ok=True)
        clean_checkpoints(folder)
        save_folder(target, write)
        settle_checkpoints(folder, keep, target)
    return target


def settle_checkpoints(folder: Path, keep: int, newest: Path | None = None) -> None:
    """Finish the work of a killed writer: remove leftovers, point `latest` to the newest, keep only `keep` checkpoints.

    Nothing is touched if there is nothing to do. Only the process that writes the run may call it.
    """
    clean_checkpoints(folder)
    existing = checkpoints(folder)
    newest = newest or (existing[-1] if existing else None)
    if newest is None:
        return
    latest = folder / "latest"
    if not latest.is_symlink() or os.readlink(latest) != newest.name:
        _point_latest(folder, newest.name)
    for old in existing[:-keep]:
        if old != newest:
            _discard(old)


def save_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Create the folder `target` atomically, with what `write(path)` puts into an empty folder and a manifest."""
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


def clean_checkpoints(folder: Path) -> None:
    """Remove a killed writer's leftovers and restore what it was replacing. Only the run's writer may call it."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".old-") and not (folder / path.name.removeprefix(".old-")).exists():
            os.rename(path, folder / path.name.removeprefix(".old-"))
        elif path.name.startswith((".old-", ".tmp-")):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def save_state(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write `path`.safetensors and `path`.json, without pickle; `meta` is JSON (tuples come back as lists)."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous()
        # safetensors refuses tensors that share memory (tied weights), so each is copied.
        shared = flat.untyped_storage().data_ptr() in seen
        seen.add(flat.untyped_storage().data_ptr())
        separate[name] = flat.clone() if shared else flat
    with writing(path):
        save_file(separate, _with_suffix(path, ".safetensors"))
        write_json(_with_suffix(path, ".json"), dict(meta))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state that `save_state` wrote, with tensors on the CPU; raise `UserError` if a file is missing."""
    from safetensors.torch import load_file

    for suffix in (".safetensors", ".json"):
        if not _with_suffix(path, suffix).is_file():
            raise UserError(f"the state {_with_suffix(path, suffix)} is missing")
    meta = json.loads(_with_suffix(path, ".json").read_text(encoding="utf-8"))
    return load_file(_with_suffix(path, ".safetensors")), meta


def _move_into_place(aside: Path, target: Path) -> None:
    """Rename `aside` to `target`; an existing target is moved away first, since rename cannot replace a full folder."""
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
    """Remove a checkpoint; rename it first, so that a kill leaves no half-removed checkpoint under its name."""
    trash = path.parent / f".tmp-removed-{path.name}"
    os.rename(path, trash)
    shutil.rmtree(trash)


def _fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for name, path in files_below(folder).items()
        if name != MANIFEST
    }


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
