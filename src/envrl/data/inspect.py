"""What lies in a folder of downloaded data, part by part, and what was recorded of it when it came."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from envrl.data.sets import DataSet
from envrl.envs.data import size_and_sha256
from envrl.envs.household.sources import GameFiles
from envrl.errors import RunError, UserError

_COUNTED = 2**26  # bytes; larger JSON would take minutes and gigabytes to read


@dataclass(frozen=True, slots=True)
class Part:
    """A file or a split: bytes, SHA-256, how many games or entries it holds (-1: not counted), and what is wrong.

    `left_out` are games that are there and cannot be played.
    """

    name: str
    bytes: int
    sha256: str
    count: int = -1
    problem: str = ""
    left_out: int = 0


def home_of(data: DataSet, folder: Path) -> Path:
    """Return the folder that the data's parts lie in, which may be a known one below the named one, or be above it."""
    if any(_part_exists(folder, name) for name in _names(data)):
        return folder
    if data.name == "alfworld" and any((folder / split).is_dir() for split in data.counts):
        return folder.parent
    for inner in data.inside:
        if any(_part_exists(folder / inner, name) for name in _names(data)):
            return folder / inner
    return folder


def parts_of(data: DataSet, home: Path) -> dict[str, Part]:
    """Return the parts that are there, by name; every byte of them is read."""
    if data.name == "alfworld":
        return {split: _games(home, split) for split in data.counts if _part_exists(home, f"json_2.1.1/{split}")}
    return {file.name: products(home / file.name) for file in data.files if _part_exists(home, file.name)}


def products(path: Path) -> Part:
    """Return a file of products or of what is known of them, counted where it is JSON of a size that can be read."""
    size, digest = size_and_sha256(path)
    part = Part(path.name, size, digest)
    if size >= _COUNTED:
        return part
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return replace(part, problem="is not whole JSON")
    if not isinstance(value, (list, dict)) or not value:
        return replace(part, problem="holds no products")
    return replace(part, count=len(value))


def _games(home: Path, split: str) -> Part:
    files = GameFiles(str(home))
    folder = home / "json_2.1.1" / split
    size = sum(path.stat().st_size for path in folder.glob("*/*/game.tw-pddl"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said in the part's own words below
            tasks, damaged = files.tasks(split)
    except UserError as error:
        return Part(split, size, "", 0, str(error))
    return Part(split, size, files.fingerprint(split), len(tasks), left_out=damaged)


def _names(data: DataSet) -> list[str]:
    return ["json_2.1.1"] if data.name == "alfworld" else [file.name for file in data.files]


def _part_exists(folder: Path, name: str) -> bool:
    return (folder / name).exists()


# --- the record ------------------------------------------------------------------------------------------------------


def record_path(data: DataSet, home: Path) -> Path:
    """Return where it is recorded what the data was when it came."""
    return home / f"envrl-{data.name}.json"


def read_record(data: DataSet, home: Path) -> dict[str, Part]:
    """Return the parts as recorded, none where nothing was; raises `UserError` where the record is damaged."""
    path = record_path(data, home)
    try:
        entries: Mapping[str, Any] = json.loads(path.read_bytes())["parts"]
        return {
            name: Part(name, int(entry["bytes"]), str(entry["sha256"]), int(entry["count"]))
            for name, entry in entries.items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not readable: remove it, and record anew with --record") from error


def write_record(data: DataSet, home: Path, parts: Mapping[str, Part]) -> None:
    """Record parts beside those recorded before; the file is replaced whole."""
    known = read_record(data, home) | dict(parts)
    entries = {
        name: {k: v for k, v in asdict(part).items() if k in ("bytes", "sha256", "count")}
        for name, part in known.items()
    }
    path = record_path(data, home)
    aside = path.with_name(f".tmp-{path.name}")
    text = json.dumps({"data": data.name, "version": data.version, "parts": entries}, indent=1) + "\n"
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}") from error
