"""What WebShop's search costs: time to start, time a search, memory of one process and of several side by side."""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envrl.envs.webshop.world import WebShop, search_template, webshop
from envrl.errors import RunError

SEARCHES = 200


def bench_search(products: int = 0, data: str = "", workers: int = 8) -> dict[str, Any]:
    """Return the costs of the search as numbers for JSON; the shop is built first where it is not cached.

    `start_s` is the time from the start of a fresh process to its first result, `search_ms` is of the
    instructions of 200 goals as queries, all of them new. `memory_mb` is proportional: a page that n processes share
    counts 1/n for each (Linux only).
    """
    began = time.perf_counter()
    count = len(_open(products, data).shop.products)
    opened = time.perf_counter() - began
    alone, side_by_side = _visits(1, products, data), _visits(workers, products, data)
    return {
        "products": count,
        "open_or_build_s": round(opened, 2),
        "start_s": alone[0]["start_s"],
        "search_ms": alone[0]["search_ms"],
        "memory_mb": _memory(alone[0], side_by_side),
    }


def _memory(alone: dict[str, Any], side_by_side: Sequence[dict[str, Any]]) -> dict[str, float]:
    if alone["memory_mb"] is None:
        return {}
    together = sum(visit["memory_mb"] for visit in side_by_side)
    return {
        "one": alone["memory_mb"],
        f"{len(side_by_side)}_workers": round(together, 1),
        "ratio": round(together / alone["memory_mb"], 2),
    }


def _open(products: int, data: str) -> WebShop:
    world = webshop(data=data, products=products)
    assert isinstance(world, WebShop)
    return world


def _visits(count: int, products: int, data: str) -> list[dict[str, Any]]:
    """Return what `count` processes say that search side by side; memory is taken when all of them have searched."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "envrl.envs.webshop.bench", str(products), data]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        for child in children:
            _line(child)
        start = round(time.perf_counter() - began, 3)
        for child in children:
            _line(child)
        return [{"start_s": start, **json.loads(_line(child, say="\n"))} for child in children]
    finally:
        for child in children:
            child.communicate()


def _line(child: subprocess.Popen[str], say: str = "") -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    if say:
        child.stdin.write(say)
        child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise RunError("a process of the benchmark ended before it had searched")
    return line


def _visit(products: int, data: str) -> None:
    """Search in this process, say so after the first and the last, and once asked what it cost.

    All others still hold their memory then.
    """
    world = _open(products, data)
    tasks = world.tasks("all")
    some = random.Random(0).sample(range(len(tasks)), min(SEARCHES, len(tasks)))
    queries = [" ".join(search_template(world.goal(tasks[n])["instruction_text"]).words) for n in some]
    world.shop.search(queries[0])
    print("started", flush=True)
    times = []
    for query in queries[1:]:
        asked = time.perf_counter()
        world.shop.search(query)
        times.append(1e3 * (time.perf_counter() - asked))
    print("searched", flush=True)
    sys.stdin.readline()
    cost = {"median": round(statistics.median(times), 3), "worst": round(max(times), 3)}
    print(json.dumps({"search_ms": cost, "memory_mb": _own_memory()}), flush=True)
    sys.stdin.readline()


def _own_memory() -> float | None:
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)
    except OSError:
        return None
    return round(int(found[1]) / 1024, 1) if found else None


if __name__ == "__main__":
    _visit(int(sys.argv[1]), sys.argv[2])
