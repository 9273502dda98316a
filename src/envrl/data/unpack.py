"""Unpacking an archive that came from elsewhere: nothing of it may land outside its folder."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from envrl.errors import RunError

_LARGEST = 2**33
"""Bytes that an archive may unpack to: 20 times what the games take."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip archive into an empty folder; raises `RunError` where it is damaged or reaches outside of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
            if sum(member.file_size for member in members) > _LARGEST:
                raise RunError(f"the archive {archive} would unpack to more than {_LARGEST:,} bytes: it is refused")
            for member in members:
                target = folder / _safe(member, archive)
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(member) as reader, open(target, "xb") as writer:
                    shutil.copyfileobj(reader, writer, 2**20)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, FileExistsError) as error:
        raise RunError(f"the archive {archive} is damaged: {error}") from error


def move_into(source: Path, target: Path) -> None:
    """Move every file below `source` to the same place below `target`, each whole; what else lies there stays."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if path.is_dir() and place.is_dir():
            move_into(path, place)
        else:
            os.replace(path, place)


def _safe(member: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """Return where a member goes, below the folder; raises `RunError` for a link, and for a place outside."""
    name = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in name.parts[0] or not name.parts:
        raise RunError(f"the archive {archive} is refused: '{member.filename}' would land outside its folder")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise RunError(f"the archive {archive} is refused: '{member.filename}' is neither a file nor a folder")
    return name
