"""What is installed and found on this machine, as findings that `envrl doctor` prints."""

from __future__ import annotations

import os
import platform
import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from envrl import __version__
from envrl.errors import UserError

GIB = 2**30
EXTRA_OF_WORLD = {
    "alfworld-textworld": "alfworld-textworld",
    "babyai": "minigrid",
    "frozenlake": "gymnasium",
    "household-textworld": "alfworld-textworld",
    "openenv": "openenv",
    "scienceworld": "scienceworld",
    "sokoban": "gymnasium",
    "textworld": "textworld",
    "verifiers": "verifiers",
}
"""The extra that a world of another package needs."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, and what was found; `good` is None where it is missing and need not be there."""

    section: str
    name: str
    good: bool | None
    detail: str

    def __str__(self) -> str:
        head = f"  { {True: 'ok  ', False: 'FAIL', None: '-   '}[self.good] }  {self.name:<20} "
        return wrapped(self.detail, head, " " * 8)


def wrapped(text: str, head: str = "", indent: str = "  ") -> str:
    """Return a text in lines of at most 100 columns where its words allow it, the first behind `head`."""
    return "\n".join(
        textwrap.wrap(
            text,
            100,
            initial_indent=head,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


def findings() -> Iterator[Finding]:
    """Yield what is installed and found, section by section."""
    yield from _programs()
    yield from _machine()
    yield from extras()
    yield from data_sets()


def _programs() -> Iterator[Finding]:
    yield Finding("programs", "envrl", True, __version__)
    yield Finding("programs", "Python", True, f"{platform.python_version()} on {platform.system()}")
    for name in ("torch", "transformers"):
        try:
            __import__(name)
            yield Finding("programs", name, True, metadata.version(name))
        except (ImportError, OSError, RuntimeError, metadata.PackageNotFoundError) as error:
            said = " ".join(str(error).split())
            yield Finding("programs", name, False, f"cannot be imported ({said}): pip install --force-reinstall {name}")


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("machine", "processor", True, f"{cores} core{'s' * (cores != 1)} for this process")
    total, free = memory()
    known = f"{total / GIB:.1f} GiB, {free / GIB:.1f} free" if total else "size unknown"
    yield Finding("machine", "memory", True, known)
    disk = shutil.disk_usage(Path.cwd())
    yield Finding("machine", "disk", True, f"{disk.free / GIB:.1f} GiB free here, of {disk.total / GIB:.1f}")
    found = cuda_devices()
    for number, (name, size) in enumerate(found):
        yield Finding("machine", f"cuda:{number}", True, f"{name}, {size / GIB:.1f} GiB")
    if not found:
        yield Finding("machine", "CUDA", None, "no device: runs are on the CPU (train.device = 'cpu')")


def memory() -> tuple[int, int]:
    """Return this machine's memory in bytes: all, and what programs can still get; (0, 0) where that is unknown."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        found = {name: 1024 * int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M)}
        return found["MemTotal"], found["MemAvailable"]
    except (OSError, KeyError):
        pages = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
        total = os.sysconf(pages[0]) * os.sysconf(pages[1]) if all(p in os.sysconf_names for p in pages) else 0
        return total, total


def cuda_devices() -> list[tuple[str, int]]:
    """Return name and memory in bytes of every CUDA device; none where torch cannot be imported."""
    try:
        import torch
    except (ImportError, OSError):
        return []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [(str(device.name), int(device.total_memory)) for device in found]


# --- extras ----------------------------------------------------------------------------------------------------------


def extras() -> Iterator[Finding]:
    """Yield for each extra whether its packages are there, or the line that installs it."""
    for extra, packages in sorted(_packages_of_extras().items()):
        yield extra_finding(extra, packages)


def extra_finding(extra: str, packages: list[str] | None = None) -> Finding:
    """Return whether an extra's packages are there, and Java where they need it."""
    packages = _packages_of_extras().get(extra, []) if packages is None else packages
    missing = [name for name in packages if not _version(name)]
    if missing:
        return Finding("extras", extra, None, f"missing: pip install 'envrl[{extra}]'")
    there = ", ".join(f"{name} {_version(name)}" for name in packages)
    if extra == "scienceworld" and not shutil.which("java"):
        return Finding("extras", extra, None, f"{there}; needs Java, 'java' is not on the path: install a JRE")
    return Finding("extras", extra, True, there)


def _packages_of_extras() -> dict[str, list[str]]:
    """Return the packages of each extra that users install, as this installation's metadata has them."""
    found: dict[str, list[str]] = {}
    for line in metadata.requires("envrl") or ():
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w.-]+)['\"]", line)
        if match and match[2] != "dev":
            found.setdefault(match[2], []).append(match[1])
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


# --- data ------------------------------------------------------------------------------------------------------------


def data_sets() -> Iterator[Finding]:
    """Yield for each data set where it lies, or the command that gets it."""
    from envrl.data.sets import SETS

    for name in SETS:
        yield data_finding(name)


def data_finding(name: str, given: str = "") -> Finding:
    """Return where a data set lies, or how to get it; what lies there is left to `envrl data check`."""
    from envrl.data.inspect import home_of
    from envrl.data.sets import SETS
    from envrl.envs.data import VARIABLES, data_folder

    data = SETS[name]
    try:
        home = home_of(data, data_folder(name, given))
    except UserError:
        return Finding("data", name, None, f"not here: envrl data get {name}, or name its folder in ${VARIABLES[name]}")
    there = [file.name for file in data.files if (home / file.name).is_file()]
    games = [split for split in data.counts if (home / "json_2.1.1" / split).is_dir()]
    if not there and not games:
        return Finding("data", name, None, f"{home} holds nothing of it: envrl data get {name}")
    return Finding("data", name, True, f"{home} ({', '.join(games or there)})")
