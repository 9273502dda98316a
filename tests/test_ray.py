"""`envrl train … --ray ADDRESS`: ranks over a cluster of several nodes on this machine, which are killed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envrl import clusters, ranks
from envrl.cli import cluster as command_cluster
from envrl.cli import rank_host, ray_launch
from envrl.cli.cluster import Needs, check_size, needs_of, room
from envrl.cli.launch import AGAIN, OTHERS
from envrl.cli.main import main
from envrl.cli.rank_host import Place, RankHost, in_order, variables_of
from envrl.cli.ray_launch import GRACE, LOST, Job, is_over
from envrl.clusters import connected
from envrl.config.load import override
from envrl.config.schema import Config
from envrl.envs import ray_hosts
from envrl.envs.pool import ProcessPool, Worlds
from envrl.envs.vector import LocalWorlds
from envrl.errors import RunError, UserError
from envrl.models.checkpoints import verify_checkpoint
from ray_cluster import NODE, wait_for
from test_pool import PLAIN, Counter, alive, parent_of, said
from test_processes import command, lines, train
from warm import envrl

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


def test_a_run_that_loses_an_actor_and_a_node_learns_what_an_unbroken_one_does(cluster: Any, tmp_path: Path) -> None:
    """An actor is killed while it learns from update 2; a node while update 3 is played, and another one comes."""
    train(tmp_path / "two", "--processes", 2)
    plugin = tmp_path / "falls.py"
    plugin.write_text(FALLS)
    asked = command(tmp_path / "ray", "--processes", 2, "--ray", cluster.address, "--plugin", plugin)
    ended: list[subprocess.CompletedProcess[str]] = []
    runs = threading.Thread(target=lambda: ended.append(envrl(*asked)))
    runs.start()
    wait_for(lambda: bool(ended) or (tmp_path / "playing").exists())
    assert not ended, ended[0].stderr[-3000:]
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    cluster.add_node(**NODE)
    runs.join()
    said = ended[0].stderr
    assert ended[0].returncode == 0, said[-3000:]
    assert (tmp_path / "learning").exists()
    assert "process 1 on" in said
    assert "all go on from the last checkpoint (restart 1)" in said
    assert "all go on from the last checkpoint (restart 2)" in said
    assert re.search(r"^\[\d nodes, 2 processes, 2 restarts\] update 4/4 ", said, re.M)
    assert "Traceback" not in said
    assert lines(tmp_path / "ray") == lines(tmp_path / "two")
    assert lines(tmp_path / "ray", "eval.jsonl") == lines(tmp_path / "two", "eval.jsonl")
    verify_checkpoint(tmp_path / "ray" / "checkpoints" / "latest")


def test_ctrl_c_stops_the_processes_between_two_updates(cluster: Any, tmp_path: Path) -> None:
    """The launcher alone is told, and passes it on; one process is enough, since all are told the same way."""
    long = {"train.updates": 500, "checkpoint.every": 100, "eval.every": 0, "warm_start.demonstrations": 0}
    asked = command(tmp_path / "run", "--processes", 1, "--ray", cluster.address, **long)
    process = subprocess.Popen([sys.executable, "-m", "envrl", *asked], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (metrics.exists() and bool(metrics.read_text())))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said[-3000:]
    assert said.count("interrupted; saved") == 1
    assert "Traceback" not in said
    state = json.loads((tmp_path / "run" / "checkpoints" / "latest" / "state.json").read_text())
    assert state["update"] == len(lines(tmp_path / "run")) >= 1


def test_a_cluster_that_is_too_small_is_refused(cluster: Any, tmp_path: Path) -> None:
    done = envrl(*command(tmp_path / "run", "--ray", cluster.address, "--processes", 3))
    assert done.returncode == 2, done.stderr
    assert (
        "3 processes with train.device = 'cpu' need a CPU each, and the Ray cluster has 2 nodes with 2 CPUs and 0 GPUs"
        in done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_worlds_on_the_nodes_of_a_cluster_answer_as_here(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two calls a worker is killed, an actor, a node; a world that kills its worker is set aside.

    What they answer is what worlds in this process do, and they are on all of three nodes.
    """
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    ray, local = pytest.importorskip("ray"), LocalWorlds(Counter)
    cluster.add_node(**NODE)
    pool = Worlds(Counter, 3, 60.0, "ray").vector()
    assert isinstance(pool, ProcessPool)
    played: list[int] = []

    def turn(command: str) -> list[int]:
        """Have all slots hear a command, as here; return the processes of the workers."""
        commands = [(slot, command) for slot in range(7)]
        steps = [step for step in pool.step(commands) if step]
        assert [step.observation for step in steps] == [step.observation for step in local.step(commands) if step]
        pids = list(dict.fromkeys(step.info["pid"] for step in steps))
        played.extend(pids)
        return pids

    try:
        assert said(pool, PLAIN) == said(local, PLAIN)
        workers = turn("one")
        assert len({parent_of(parent_of(pid)) for pid in workers}) == 3, "the actors of three nodes"
        os.kill(workers[0], signal.SIGKILL)
        wait_for(lambda: lost(pool) == 1)
        os.kill(parent_of(turn("two")[1]), signal.SIGKILL)
        wait_for(lambda: lost(pool) == 1)
        turn("three")
        assert pool.replaced >= 2
        here = ray.get_runtime_context().get_node_id()
        cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id != here), allow_graceful=False)
        cluster.add_node(**NODE)
        wait_for(lambda: lost(pool) == 1)
        turn("four")
        assert pool.replaced >= 3
        assert pool.set_aside == {}
        with pytest.warns(UserWarning, match="set aside the task '3': its world failed 3 times, it closed its conn"):
            assert pool.step([(3, "die")]) == [None]
        assert pool.replaced >= 6
    finally:
        pool.close()
        ray.shutdown()
        cluster.remove_node(next(iter(cluster.worker_nodes)))
    wait_for(lambda: not any(map(alive, played)))


def lost(pool: ProcessPool) -> int:
    """Return how many workers are known to be gone."""
    return sum(worker.process is not None and worker.process.has_ended() for worker in pool._workers)


def test_a_run_with_worlds_on_the_cluster_is_the_run_without(cluster: Any, tmp_path: Path) -> None:
    """A process and a worker of it, each with a CPU of its own."""
    short = {"train.updates": 2}
    train(tmp_path / "here", "--processes", 1, **short)
    there = {**short, "env.place": "ray", "env.workers": 1}
    train(tmp_path / "there", "--ray", cluster.address, **there)  # the cluster has room for one
    assert lines(tmp_path / "there") == lines(tmp_path / "here")
    assert lines(tmp_path / "there", "eval.jsonl") == lines(tmp_path / "here", "eval.jsonl")


# --- without a cluster -----------------------------------------------------------------------------------------------


def test_an_address_that_does_not_answer_is_refused_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens; something else answers; somebody listens and says nothing."""
    monkeypatch.setattr(clusters, "_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=rf"no Ray cluster answers at 127.0.0.1:{port} \(timed out\)"):
            connected(f"127.0.0.1:{port}")
        server.accept()[0].close()
        answers = threading.Thread(target=lambda: server.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n"))
        answers.start()
        with pytest.raises(UserError, match=r"something else listens there|reset"):
            connected(f"127.0.0.1:{port}")
        answers.join()
    with pytest.raises(UserError, match="Connection refused"):
        connected(f"127.0.0.1:{port}")


@pytest.mark.parametrize("holds_weights", [False, True])
def test_a_cluster_of_our_own_has_room_for_weights_where_samplers_take_them_from_it(
    holds_weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a small store every version of them would go through the disk."""
    given: dict[str, Any] = {}
    errors = SimpleNamespace(RayError=OSError, AuthenticationError=OSError)
    module = SimpleNamespace(init=lambda **options: given.update(options), exceptions=errors)
    monkeypatch.setattr(clusters, "import_module", lambda name: module)
    connected("local", holds_weights=holds_weights)
    assert given["address"] == "local"
    assert given.get("object_store_memory") == (None if holds_weights else 80 << 20)


@pytest.mark.parametrize("address", ["", "host", "host:", "host:x", "host:70000", "ray://host:10001", ":6379"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="--ray takes the HOST:PORT that 'ray start' names, auto, or local, not"):
        connected(address)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (["--ray", "local", "--train.engine", "local"], "train.engine = 'local' is one of a single process"),
        (["--ray", "local", "--processes", "0"], "--processes must be at least 1"),
        (["--ray-patience", "5"], "it does nothing without it"),
        (["--ray", "local", "--ray-patience", "soon"], "must be a number of at least 0"),
        (["--ray", "local"], "--ray needs Ray, which is not installed: pip install 'envrl[ray]'"),
        (["--env.place", "ray"], "env.place = 'ray' needs the number of workers of a process: env.workers is -1"),
        (["--env.place", "ray", "--env.workers", "2"], "env.place = 'ray' needs Ray, which is not installed: pip"),
        (["--rollout.sampler", "ray"], "rollout.sampler = 'ray' needs Ray, which is not installed: pip install"),
    ],
)
def test_mistakes_are_sentences(
    others: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (command_cluster, ray_hosts, importlib.util):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert main(command(tmp_path / "run", *others)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_processes_are_numbered_node_by_node_and_find_their_gpus() -> None:
    """Torchrun's variables, worked out by hand: of three GPUs of one node and one of another."""
    places = [
        Place("b", "10.0.0.2", 11, ("3",)),
        Place("a", "10.0.0.1", 12, ("0",)),
        Place("b", "10.0.0.2", 13, ("1",)),
        Place("b", "10.0.0.2", 14, ("0",)),
    ]
    order = in_order(places)
    assert order == [0, 2, 3, 1]
    found = variables_of([places[number] for number in order], 29500)
    master = {"WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.2", "MASTER_PORT": "29500"}
    assert found == [
        {"RANK": "0", "LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "3,1,0", **master},
        {"RANK": "1", "LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "3,1,0", **master},
        {"RANK": "2", "LOCAL_RANK": "2", "CUDA_VISIBLE_DEVICES": "3,1,0", **master},
        {"RANK": "3", "LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "0", **master},
    ]
    assert "CUDA_VISIBLE_DEVICES" not in variables_of([Place("a", "10.0.0.1", 1, ())], 1)[0]


def test_a_cluster_that_is_large_enough_is_taken() -> None:
    """One with 8 GPUs and 64 CPUs has, worked out by hand, room for what is named here and for no more."""
    eight = {"CPU": 64.0, "GPU": 8.0}
    check_size(eight, 1, 8, Needs("cuda"))
    with pytest.raises(
        UserError, match=r"1 process with train.device = 'cuda' need a GPU each, and the Ray cluster has 2"
    ):
        check_size({"CPU": 2.0}, 2, 1, Needs("cuda"))
    with pytest.raises(UserError, match=r"9 processes .* has 1 node with 64 CPUs and 8 GPUs"):
        check_size(eight, 1, 9, Needs("cuda"))
    worlds = {workers: Needs("cuda", workers, 0, (f"env.workers = {workers}",)) for workers in (7, 8, 15)}
    check_size(eight, 1, 8, worlds[7])
    with pytest.raises(
        UserError,
        match=r"8 processes with train.device = 'cuda' with env.workers = 8 on the cluster need 72 CPUs, and the Ray "
        r"cluster has 1 node with 64 CPUs and 8 GPUs: add nodes, or lower --processes, env.workers$",
    ):
        check_size(eight, 1, 8, worlds[8])
    assert [room(eight, needs) for needs in (Needs("cuda"), worlds[7], worlds[15])] == [8, 8, 4]
    assert [room(eight, Needs("cpu", workers)) for workers in (0, 1)] == [64, 32]


def test_samplers_on_the_cluster_are_counted() -> None:
    """A process that learns on a GPU with three samplers of two CPUs, and two worlds: 4 GPUs and 9 CPUs."""
    settings = {"rollout.sampler": "ray", "rollout.ray.actors": "3", "rollout.ray.cpus": "2"}
    worlds = {"env.place": "ray", "env.workers": "2", "train.device": "cuda"}
    needs = needs_of(override(Config(), [*settings.items(), *worlds.items()]))
    assert needs.each == {"CPU": 9, "GPU": 4}
    assert room({"CPU": 64.0, "GPU": 8.0}, needs) == 2
    with pytest.raises(UserError, match=r"with env.workers = 2 and rollout.ray.actors = 3 on the cluster need 12 GPUs"):
        check_size({"CPU": 64.0, "GPU": 8.0}, 1, 3, needs)
    assert needs_of(override(Config(), list(settings.items()))).each == {"CPU": 7}


@pytest.mark.parametrize(
    ("ends", "over"),
    [
        ({}, False),
        ({0: (1.0, 0)}, False),
        ({0: (1.0, 0), 1: (2.0, 0)}, True),
        ({0: (1.0, LOST)}, True),
        ({0: (1.0, AGAIN)}, True),
        ({0: (1.0, OTHERS)}, False),
        ({0: (1.0 - GRACE, OTHERS)}, True),
        ({0: (1.0, 1)}, False),
        ({0: (1.0 - GRACE, 130)}, False),
    ],
)
def test_the_others_are_waited_for_unless_one_is_lost(ends: dict[int, tuple[float, int]], over: bool) -> None:
    assert is_over(ends, 2, 2.0) is over


def test_a_node_that_does_not_share_the_runs_storage_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one host writes the other one looks for where nothing is; nothing stays behind."""
    monkeypatch.setattr(rank_host, "_SEEN_WITHIN", 0.2)
    run = tmp_path / "not" / "yet"
    host = RankHost()
    token = host.leave_token(run)
    assert token.parent == tmp_path
    assert host.sees(token)
    host.remove_token(token)
    assert not host.sees(token)
    launcher = launcher_of(run, 2)
    blind = fake(RankHost(), sees=lambda path: path == Path.cwd())
    with pytest.raises(UserError, match=rf"the node h1 does not see what h0 writes into {tmp_path}: a run's"):
        launcher._check_storage([fake(host), blind], [Place("a", "h0", 1, ()), Place("b", "h1", 1, ())])
    elsewhere = fake(RankHost(), sees=lambda path: False)
    with pytest.raises(UserError, match=rf"the node h1 has no folder {Path.cwd()}"):
        launcher._check_storage([fake(host), elsewhere], [Place("a", "h0", 1, ()), Place("b", "h1", 1, ())])
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_the_program_is_named(tmp_path: Path) -> None:
    """What Ray 2.60 says there, shortened; and what it says of an actor that was lost."""
    launcher = launcher_of(tmp_path, 2)
    said = [
        "The actor died because of an error raised in its creation task, ray::RankHost.__init__() (pid=1)\n    ^^^^\n"
        "ModuleNotFoundError: No module named 'envrl'",
        "The actor died unexpectedly before finishing this task.\n\tclass_name: RankHost",
    ]

    def get(futures: object, timeout: float) -> None:
        raise ConnectionError(said.pop(0))

    launcher._ray.get = get
    with pytest.raises(
        UserError, match=r"cannot start a process of the run \(ModuleNotFoundError: No module named 'env"
    ):
        launcher._get([])
    with pytest.raises(ray_launch._Gone, match=r"^The actor died unexpectedly before finishing this task$"):
        launcher._get([])


def test_losses_in_vain_come_to_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three in a row before anything is saved; what is saved in between has them counted anew."""
    launcher = launcher_of(tmp_path, 2)
    attempts: list[int] = []

    def attempt(ours: object) -> int:
        attempts.append(len(attempts))
        if len(attempts) == 2:
            (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
        launcher._why = "process 1 was lost"
        return LOST

    launcher._attempt = attempt
    with pytest.raises(RunError, match="process 1 was lost, the 3rd time before anything was saved"):
        launcher.run(400)
    assert len(attempts) == 5
    assert "(restart 4)" in capsys.readouterr().err


def test_memory_that_runs_out_halves_the_budget_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = launcher_of(tmp_path, 2)
    given: list[str | None] = []

    def attempt(ours: dict[str, str]) -> int:
        given.append(ours.get(ranks.BUDGET))
        return AGAIN if len(given) < 3 else 0

    launcher._attempt = attempt
    assert launcher.run(400) == 0
    assert given == [None, "200", "100"]
    assert "ran out in one of the 2 processes; they go on from the last checkpoint" in capsys.readouterr().err


def test_room_that_does_not_come_back_ends_the_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launcher = launcher_of(tmp_path, 2, patience=1.8)
    with pytest.raises(RunError, match=r"waited \d+ s in vain for room in the cluster; go on with --resume, or raise"):
        launcher._wait(lambda: time.sleep(0.3), "for room in the cluster")
    said = capsys.readouterr().err
    assert said.count("waiting for room in the cluster, which has 1 node with 1 CPU and 0 GPUs, for 2 processes") == 1


def launcher_of(run: Path, count: int, patience: float = 5.0) -> Any:
    """Return a launcher whose cluster is a fake: what actors answer is there at once."""
    ray = SimpleNamespace(
        get=lambda futures, timeout: futures,
        nodes=lambda: [{"Alive": True}, {"Alive": False}],
        cluster_resources=lambda: {"CPU": 1.0},
        exceptions=SimpleNamespace(
            RayActorError=ConnectionError, ActorUnavailableError=ConnectionResetError, GetTimeoutError=TimeoutError
        ),
    )
    return ray_launch._Launcher(ray, Job((), run, count, "cpu", patience), ray_launch.StopRequest())


def fake(host: RankHost, **others: Callable[..., object]) -> Any:
    """Return a host as a Ray actor whose methods answer at once."""
    names = [name for name in dir(RankHost) if not name.startswith("_")]
    return SimpleNamespace(**{name: SimpleNamespace(remote=others.get(name, getattr(host, name))) for name in names})
