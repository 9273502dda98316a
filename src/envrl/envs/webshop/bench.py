"""What WebShop's search costs: time to start, time a search, memory of one process and of several side by side."""

from __future__ import annotations

import json
import mmap
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envrl.envs.webshop.store import StoredShop
from envrl.envs.webshop.visit import search_template
from envrl.envs.webshop.world import WebShop, webshop
from envrl.errors import RunError

SEARCHES = 200


def bench_search(products: int = 0, data: str = "", workers: int = 8) -> dict[str, Any]:
    """Return the costs of the search as numbers for JSON; the shop is built first where it is not cached.

    `start_s` is the time from the start of a fresh process to its first result, `search_ms` is of the
    instructions of 200 goals as queries, all of them new. `memory_mb` of one process and of `workers` together, after
    these searches and with all of the shop in use, is proportional: a page that n processes share counts 1/n for each
    (Linux only).
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
        "memory_mb": {
            state: _memory([visit["memory_mb"][state] for visit in alone + side_by_side], workers)
            for state in ("searched", "all_in_use")
        },
    }


def _memory(amounts: Sequence[float], workers: int) -> dict[str, float]:
    """Return what one process and several take, and their ratio; the first amount is of one alone."""
    one, together = amounts[0], sum(amounts[1:])
    return {"one": one, f"{workers}_workers": round(together, 1), "ratio": round(together / one, 2)} if one else {}


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
        visits: list[dict[str, Any]] = [{"start_s": round(time.perf_counter() - began, 3)} for _ in children]
        for child, visit in zip(children, visits, strict=True):
            visit |= {"search_ms": json.loads(_line(child)), "memory_mb": {}}
        for state in ("searched", "all_in_use"):  # all have come so far before any is asked
            for child, visit in zip(children, visits, strict=True):
                visit["memory_mb"][state] = json.loads(_line(child, say="\n"))
            for child in children:
                _line(child, say="\n")
        return visits
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
    """Search in this process: say so after the first, tell times after the last, and memory when asked."""
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
    print(json.dumps({"median": round(statistics.median(times), 3), "worst": round(max(times), 3)}), flush=True)
    assert isinstance(world.shop, StoredShop)
    _tell_memory()
    in_use = [_used(file) for file in sorted(world.shop.folder.iterdir())]
    print(f"{len(in_use)} files in use", flush=True)
    _tell_memory()
    print("done", flush=True)


def _tell_memory() -> None:
    """Tell the proportional memory of this process in MB when asked, then wait to be told to go on."""
    sys.stdin.readline()
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)
    except OSError:
        found = None
    print(json.dumps(round(int(found[1]) / 1024, 1) if found else 0), flush=True)
    sys.stdin.readline()


def _used(file: Path) -> mmap.mmap:
    """Map a file and read from each of its pages."""
    with open(file, "rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    mapped[:: mmap.PAGESIZE]
    return mapped


if __name__ == "__main__":
    _visit(int(sys.argv[1]), sys.argv[2])
