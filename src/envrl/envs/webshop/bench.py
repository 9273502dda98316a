"""What WebShop's search costs: time to start, time a search, memory of one worker and of several side by side."""

from __future__ import annotations

import mmap
import random
import re
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from envrl.envs.pool import ProcessPool
from envrl.envs.vector import Start
from envrl.envs.webshop.factory import webshop
from envrl.envs.webshop.store import StoredShop
from envrl.envs.webshop.visit import search_template
from envrl.envs.webshop.world import WebShop
from envrl.errors import RunError
from envrl.types import Observation, Step, Task

SEARCHES = 200
STATES = ("searched", "all_in_use")
TASK = Task("search", "all")


def bench_search(products: int = 0, data: str = "", workers: int = 8) -> dict[str, Any]:
    """Return the costs of the search as numbers for JSON; the shop is built first where it is not cached.

    `start_s` is the time from the start of a pool of one worker to its first result, `search_ms` is of the
    instructions of 200 goals as queries, all of them new. `memory_mb` of one worker and of `workers` together, each
    time with their fork server, after these searches and with all of the shop in use, is proportional: a page that n
    processes share counts 1/n for each (Linux only).
    """
    began = time.perf_counter()
    count = len(_shop(products, data).products)
    opened = time.perf_counter() - began
    alone, side_by_side = _visit(1, products, data), _visit(workers, products, data)
    return {
        "products": count,
        "open_or_build_s": round(opened, 2),
        "start_s": alone["start_s"],
        "search_ms": alone["search_ms"],
        "memory_mb": {
            state: _memory(alone["memory_mb"][state], side_by_side["memory_mb"][state], workers) for state in STATES
        },
    }


def _memory(one: float, together: float, workers: int) -> dict[str, float]:
    """Return what one worker and several take, and their ratio; nothing where the system does not tell."""
    return {"one": one, f"{workers}_workers": together, "ratio": round(together / one, 2)} if one else {}


def _shop(products: int, data: str) -> StoredShop:
    world = webshop(data=data, products=products)
    assert isinstance(world, WebShop)
    assert isinstance(world.shop, StoredShop)
    return world.shop


def _visit(count: int, products: int, data: str) -> dict[str, Any]:
    """Return what `count` workers cost that search side by side; the fork server's memory counts as theirs."""
    pool = ProcessPool(partial(Searches, products, data), count, timeout=3600.0)
    try:
        began = time.perf_counter()
        pool.reset([Start(slot, TASK, 0) for slot in range(count)])
        found: dict[str, Any] = {"start_s": round(time.perf_counter() - began, 3), "memory_mb": {}}
        for state in STATES:
            steps = pool.step([(slot, state) for slot in range(count)])
            if steps[0] is None:
                raise RunError("a worker of the benchmark failed again and again")
            found |= {"search_ms": steps[0].observation.info} if state == "searched" else {}
            found["memory_mb"][state] = round(sum(map(_memory_of, pool.processes())), 1)
        return found
    finally:
        pool.close()


def _memory_of(pid: int) -> float:
    """Return the proportional memory of a process in MB, 0 where the system does not tell."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except OSError:
        found = None
    return int(found[1]) / 1024 if found else 0.0


class Searches:
    """A world whose start is one search, and whose two commands are the states in which memory is measured."""

    def __init__(self, products: int, data: str) -> None:
        self._world = webshop(data=data, products=products)
        self._used: list[mmap.mmap] = []

    def tasks(self, split: str) -> list[Task]:
        """Return the one task."""
        return [TASK]

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Draw the queries, and search with the first."""
        assert isinstance(self._world, WebShop)
        goals = self._world.tasks("all")
        some = random.Random(0).sample(range(len(goals)), min(SEARCHES, len(goals)))
        goal = self._world.goal
        self._queries = [" ".join(search_template(goal(goals[n])["instruction_text"]).words) for n in some]
        self._world.shop.search(self._queries[0])
        return Observation("searched once")

    def step(self, action: str) -> Step:
        """Do the other searches, whose milliseconds are told; or use every page of the shop."""
        assert isinstance(self._world, WebShop)
        assert isinstance(self._world.shop, StoredShop)
        times = []
        for query in self._queries[1:] if action == "searched" else ():
            asked = time.perf_counter()
            self._world.shop.search(query)
            times.append(1e3 * (time.perf_counter() - asked))
        if action == "all_in_use":
            self._used = [_used(file) for file in sorted(self._world.shop.folder.iterdir())]
        about = {"median": round(statistics.median(times), 3), "worst": round(max(times), 3)} if times else {}
        return Step(Observation(action, None, about), 0.0, False, False)


def _used(file: Path) -> mmap.mmap:
    """Map a file and read from each of its pages."""
    with open(file, "rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    mapped[:: mmap.PAGESIZE]
    return mapped
