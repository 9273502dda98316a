"""Files of worlds: where downloaded data lies, how to get it, and which data it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from envrl.errors import UserError
from envrl.places import default_folder

VARIABLES = {"alfworld": "ALFWORLD_DATA", "webshop": "WEBSHOP_DATA"}
"""The environment variable that names the data of each world that needs some."""


def how_to_get(name: str) -> str:
    """Return the end of a sentence about data that is not there."""
    return f"get it with 'envrl data get {name}', or name the folder that holds it in env.data or ${VARIABLES[name]}"


def data_folder(name: str, given: str = "") -> Path:
    """Return the folder of a world's data: the given one, that of the environment variable, or the default one.

    Raises `UserError` where there is none, or it is no folder; what lies in it is not looked at.
    """
    named = given or os.environ.get(VARIABLES[name], "")
    folder = Path(os.path.expanduser(named)) if named else default_folder(name)  # Path.expanduser raises for no user
    if folder.is_dir():
        return folder
    if not named:
        raise UserError(f"there is no data for the world '{name}' in {folder}; {how_to_get(name)}")
    state = "is not a folder" if folder.exists() else "does not exist"
    raise UserError(f"the data folder '{named}' of the world '{name}' {state}; {how_to_get(name)}")


def fingerprint_of(root: Path, names: Iterable[str]) -> str:
    """Return a SHA-256 over (name below `root`, size in bytes, SHA-256) of files, the same wherever they lie.

    One line `name size sha256` a file, sorted by name. Takes about a second for 250 MB.
    """
    whole = hashlib.sha256()
    for name in sorted(names):
        size, digest = size_and_sha256(root / name)
        whole.update(f"{name} {size} {digest}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def size_and_sha256(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes and its SHA-256 as `sha256sum` prints it."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
