"""`envrl train … --ray ADDRESS`: ranks over a cluster of several nodes on this machine, which are killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from envrl.models.checkpoints import verify_checkpoint
from test_processes import command, lines, train
from warm import envrl

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with a CPU each, whose raylets are processes of this machine."""
    utils: Any = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install 'envrl[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        made = utils.Cluster(initialize_head=True, connect=False, head_node_args={**NODE, "include_dashboard": False})
        made.add_node(**NODE)
        yield made
        made.shutdown()


FALLS = """
import os
import signal
import time
from pathlib import Path

import envrl
from envrl.engine import update
from envrl.trainer import rollouts

FOLDER = Path(__file__).parent
micro_loss, play = update.micro_loss, rollouts.play_episodes
number = 0


def first_time(name):
    if os.environ["RANK"] != "1" or (FOLDER / name).exists():
        return False
    (FOLDER / name).write_text("")
    return True


def falls(*arguments, **settings):
    if number == 2 and first_time("learning"):
        os.kill(os.getppid(), signal.SIGKILL)  # the actor
        time.sleep(600)
    return micro_loss(*arguments, **settings)


def waits(*arguments, **settings):
    global number
    number = settings["update"]
    if number == 3 and first_time("playing"):
        time.sleep(600)
    return play(*arguments, **settings)


update.micro_loss, rollouts.play_episodes = falls, waits


@envrl.register("estimator", "unused")
def unused(steps): ...
"""


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_run_that_loses_an_actor_and_a_node_learns_what_an_unbroken_one_does(cluster: Any, tmp_path: Path) -> None:
    """An actor is killed while it learns from update 2, a node while update 3 is played, and comes back as another."""
    train(tmp_path / "two", "--processes", 2)
    plugin = tmp_path / "falls.py"
    plugin.write_text(FALLS)
    asked = command(tmp_path / "ray", "--processes", 2, "--ray", cluster.address, "--plugin", plugin)
    ended: list[Any] = []
    runs = threading.Thread(target=lambda: ended.append(envrl(*asked)))
    runs.start()
    wait_for(lambda: bool(ended) or (tmp_path / "playing").exists())
    assert not ended, ended[0].stderr[-3000:]
    cluster.remove_node(sorted(cluster.worker_nodes, key=str)[0], allow_graceful=False)
    cluster.add_node(**NODE)
    runs.join()
    said = ended[0].stderr
    print(said)
    assert ended[0].returncode == 0, said[-3000:]
    assert (tmp_path / "learning").exists()
    assert "all go on from the last checkpoint (restart 1)" in said
    assert "all go on from the last checkpoint (restart 2)" in said
    assert "[2 nodes, 2 processes, 2 restarts] update 4/4" in said
    assert "Traceback" not in said
    assert lines(tmp_path / "ray") == lines(tmp_path / "two")
    assert lines(tmp_path / "ray", "eval.jsonl") == lines(tmp_path / "two", "eval.jsonl")
    verify_checkpoint(tmp_path / "ray" / "checkpoints" / "latest")
