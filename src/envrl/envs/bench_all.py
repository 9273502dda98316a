"""What every world that is available here costs: each is played by a fresh process, so that memory is its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from envrl.envs.bench import bench_env
from envrl.envs.registry import env_names
from envrl.errors import UserError

GAMES = 10
"""Games played of each world: fewer than by `bench_env`, since some take a second each to be made."""
_LIMITS = {
    "load": "reading or making a game",
    "reset": "starting a game again",
    "step": "the steps themselves",
}


def bench_all(seconds: float = 2.0) -> list[dict[str, Any]]:
    """Return a row for each world: what it costs, or under `unavailable` the sentence that says why there is none.

    `steps_per_second`, `load_ms` (first reset of a game) and `reset_ms` (a later one) are `bench_env`'s; `memory_mb` is
    the peak of resident memory of a fresh process that plays (of the larger one where the world has a second process);
    `limit` says what takes most of the time of an episode in a new game. A world that fails is not available either,
    and has `failed`.
    """
    if not seconds > 0:
        raise UserError(f"a benchmark needs more than 0 seconds, not {seconds}")
    return [_row(name, seconds) for name in env_names()]


def _row(name: str, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as problems:
        command = [sys.executable, "-m", "envrl.envs.bench_all", name, str(seconds)]
        process = subprocess.Popen(command, stdout=out, stderr=problems)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        problems.seek(0)
        lines, complaint = out.read().decode().splitlines(), problems.read().decode(errors="replace")
    if process.returncode or not lines:
        last = complaint.strip().rpartition("\n")[2]
        return {"env": name, "unavailable": f"failed with status {process.returncode}: {last}", "failed": True}
    figures = json.loads(lines[-1])
    if "unavailable" in figures:
        return {"env": name, **figures}
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return {
        "env": name,
        "steps_per_second": figures["steps_per_second"],
        "load_ms": figures["load_ms"],
        "reset_ms": round(figures["reset_us"] / 1e3, 4),
        "memory_mb": round(usage.ru_maxrss * unit / 2**20),
        "limit": _LIMITS[_limit(figures)],
    }


def _limit(figures: dict[str, Any]) -> str:
    """Return which part of the time of an episode of mean length is the largest."""
    reset = figures["reset_us"] / 1e6
    parts = {
        "step": figures["steps"] / figures["episodes"] / figures["steps_per_second"],
        "reset": reset,
        "load": figures["load_ms"] / 1e3 - reset,
    }
    return max(parts, key=lambda part: parts[part])


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table of text, and below it why worlds are missing."""
    heads = ("world", "steps/s", "load ms", "reset ms", "memory MB", "most time goes to")
    shown = [
        (
            row["env"],
            f"{row['steps_per_second']:,}",
            f"{row['load_ms']:,.2f}",
            f"{row['reset_ms']:,.3f}",
            f"{row['memory_mb']:,}",
            row["limit"],
        )
        for row in rows
        if "unavailable" not in row
    ]
    widths = [max(len(line[column]) for line in (heads, *shown)) for column in range(len(heads))]
    lines = [
        "  ".join(
            text.ljust(width) if column in (0, len(heads) - 1) else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (heads, *shown)
    ]
    missing = [f"{row['env']}: {row['unavailable']}" for row in rows if "unavailable" in row]
    return "\n".join([*lines, *(["", "not available here", *missing] if missing else [])])


def main(name: str, seconds: float) -> None:
    """Play one world and print a line of JSON: its figures, or why it is not available."""
    try:
        figures = bench_env(name, seconds=seconds, games=GAMES)
    except UserError as error:
        figures = {"unavailable": str(error)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
