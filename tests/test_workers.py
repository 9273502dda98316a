"""Whole runs whose world is played in worker processes that die."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from boxes import Boxes, tiny
from envrl.envs.pool import ProcessPool
from envrl.envs.registry import make, maker, register_env
from envrl.envs.vector import Start
from envrl.errors import RunError
from envrl.trainer.loop import train
from frail import Frail

EVEN = tuple(f"train/{number}" for number in range(0, 48, 2))
ODD = tuple(f"train/{number}" for number in range(1, 48, 2))


def trained(
    folder: Path, name: str, factory: Callable[[], Boxes], workers: int, **settings: Any
) -> list[dict[str, Any]]:
    register_env(name, factory)
    quick = {"every": 0, "split": ("valid_b",), "episodes": 0, "free_episodes": 2, "probe_episodes": 2}
    config = tiny(env={"name": name, "workers": workers}, eval=quick, **settings)
    run = train(config, folder / name)
    lines = [*(run / "metrics.jsonl").read_text().splitlines(), *(run / "eval.jsonl").read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_a_run_in_workers_is_the_run_without_them_though_they_die(tmp_path: Path) -> None:
    changing = {"seconds", "rate", "memory"}
    plain, frail = [
        trained(tmp_path, "boxes-without-workers", Boxes, 0),
        trained(tmp_path, "frail-boxes", partial(Frail, tmp_path, os.getpid(), EVEN), 2),
    ]
    assert [{k: v for k, v in r.items() if k not in changing} for r in plain] == [
        {k: v for k, v in r.items() if k not in changing} for r in frail
    ]
    assert not any("workers_replaced" in r.get("rate", {}) for r in plain)
    assert sum(r["rate"]["workers_replaced"] for r in frail if "rate" in r) >= len(list(tmp_path.glob("train-*"))) > 0
    assert {record.get("env/set_aside", 0) for record in plain + frail} == {0}


def test_processes_of_a_pool_have_nothing_of_the_runs_network() -> None:
    pool = ProcessPool(maker("household"), 2, 60.0)
    pool.reset([Start(slot, make("household").tasks("train")[slot], 0) for slot in range(2)])
    libraries = [Path(f"/proc/{pid}/maps").read_text() for pid in (os.getpid(), *pool.processes())]
    assert ["libtorch" in library for library in libraries] == [True, False, False, False]
    assert all("numpy" in library for library in libraries)


def test_a_run_goes_on_without_the_tasks_that_were_set_aside(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"set aside the task 'train/\d+': its world failed 3 times") as warned:
        *updates, first, last = trained(tmp_path, "broken-boxes", partial(Frail, tmp_path, os.getpid(), (), EVEN), 2)
    said = [str(warning.message) for warning in warned]
    named = {sentence.split("'")[1] for sentence in said if sentence.startswith("set aside")}
    assert named == {mark.name.replace("-", "/") for mark in tmp_path.glob("train-*")}
    assert sum(record["env/set_aside"] for record in updates) == 4 * len(named)
    assert [record["episodes"] for record in updates] == [12, 24, 36]
    assert first["episodes"] == last["episodes"] == 7


@pytest.mark.filterwarnings("ignore:set aside the task")
def test_a_run_without_any_task_left_ends_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="every task of an update was set aside"):
        trained(tmp_path, "hopeless-boxes", partial(Frail, tmp_path, os.getpid(), (), (*EVEN, *ODD)), 2)
