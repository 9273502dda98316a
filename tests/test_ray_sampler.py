"""The sampler `ray`: actors on the nodes of a cluster play what the built-in sampler does, where some are lost, too."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from envrl.cli.main import main
from envrl.errors import RunError, UserError
from envrl.randomness import key_of
from envrl.rollout.own_sampler import OwnSampler
from envrl.rollout.sampler import Request, Sampler, SamplingSettings
from envrl.rollout.trie import build_trie
from envrl.serving.ray_sampler import LOSSES, RaySampler
from envrl.types import Completion
from ray_cluster import NODE
from test_graphs import qwen
from test_processes import lines, train

SETTINGS = SamplingSettings(temperature=1.3, max_tokens=6, stops=frozenset({3}))
EPISODES = 7
COMMANDS = build_trie([(20 + first, 40 + second, 3) for first in range(4) for second in range(5)])


@pytest.fixture
def ray(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    module: Any = pytest.importorskip("ray")
    yield module
    module.shutdown()


def asked(episode: int, turn: int, prompt: tuple[int, ...]) -> Request:
    return Request(episode, prompt, COMMANDS if episode % 2 else None, key_of(7, episode), turn, SETTINGS)


def turn(sampler: Sampler, number: int, said: dict[int, tuple[int, ...]]) -> dict[int, Completion]:
    """Ask for a turn of every episode, hear the answers, a few at a time, and add them to what was said."""
    for episode, ids in said.items():
        sampler.submit(asked(episode, number, ids))
    heard: dict[int, Completion | None] = {}
    while len(heard) < len(said):
        found = sampler.poll(2)
        assert found
        assert not heard.keys() & found.keys()
        heard |= found
    whole = {episode: completion for episode, completion in sorted(heard.items()) if completion is not None}
    assert whole.keys() == said.keys()
    for episode, completion in whole.items():
        said[episode] += (*completion.token_ids, 50 + episode)
    return whole


def agree(found: dict[int, Completion], expected: dict[int, Completion]) -> None:
    for episode, completion in expected.items():
        assert found[episode].token_ids == completion.token_ids
        assert np.allclose(found[episode].logprobs, completion.logprobs, atol=1e-5)
        assert [None if each is None else list(each) for each in found[episode].allowed] == [
            None if each is None else list(each) for each in completion.allowed
        ]


def start() -> dict[int, tuple[int, ...]]:
    return {episode: (30, 31 + episode % 3) for episode in range(EPISODES)}


class Beside:
    """The built-in sampler and one of two actors, which hear the same."""

    def __init__(self) -> None:
        self.own, self.there = OwnSampler(qwen()), RaySampler(qwen(), "fp32", actors=2, cpus=1, patience=600.0)
        self.here, self.far, self.turns = start(), start(), 0

    def turn(self) -> None:
        agree(turn(self.there, self.turns, self.far), turn(self.own, self.turns, self.here))
        self.turns += 1

    def load(self, factor: float) -> None:
        """Have both begin anew with other weights, as an update does."""
        for sampler in (self.own, self.there):
            for episode in self.here:
                sampler.release(episode)
            sampler.load([(name, weight.detach() * factor) for name, weight in qwen().named_parameters()], 1)
        self.here, self.far, self.turns = start(), start(), 0


def test_what_actors_answer_is_what_the_built_in_sampler_does_whoever_is_lost(cluster: Any, ray: Any) -> None:
    """New weights twice; between turns a process is killed, then a node, and another one comes."""
    both = Beside()
    both.turn()
    engines = both.there._engines
    assert sorted(len(engine.episodes) for engine in engines) == [3, 4]
    both.load(1.5)
    both.turn()
    pid = ray.get(engines[0].began)
    os.kill(pid, signal.SIGKILL)
    both.turn()
    both.turn()
    assert ray.get(engines[0].began) != pid
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    cluster.add_node(**NODE)
    both.turn()
    both.load(0.5)
    both.turn()
    both.turn()
    assert both.here == both.far


def test_what_is_released_while_it_is_asked_is_not_taken_for_what_comes_after_it(ray: Any) -> None:
    """As when a run is interrupted while it plays, and goes on to play the evaluation."""
    own, there = OwnSampler(qwen()), RaySampler(qwen(), "fp32", actors=1, cpus=1, patience=600.0)
    for episode, ids in start().items():
        there.submit(asked(episode, 0, (*ids, 33, 34)))
    assert there.poll(1)
    for episode in start():
        there.release(episode)
    assert there.poll() == {}
    agree(turn(there, 5, start()), turn(own, 5, start()))


def test_each_actor_gives_its_share_and_an_answer_that_is_lost_is_asked_for_again(
    ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is faster, so that what is played together does not depend on time, and two equal runs are equal."""
    there, own = RaySampler(qwen(), "fp32", actors=2, cpus=1, patience=600.0), OwnSampler(qwen())
    lost = [ray.exceptions.ObjectReconstructionFailedError("", "", "")]

    def get(call: Any) -> Any:
        found = ray.get(call)
        if isinstance(found, dict) and lost:
            raise lost.pop()
        return found

    names = ("wait", "put", "remote", "kill", "exceptions")
    monkeypatch.setattr(there, "_ray", SimpleNamespace(get=get, **{name: getattr(ray, name) for name in names}))
    for episode, ids in start().items():
        there.submit(asked(episode, 0, ids))
    heard = there.poll(2)
    assert [len(heard.keys() & engine.episodes) > 0 for engine in there._engines] == [True, True]
    assert not lost
    heard |= there.poll()
    found = {episode: completion for episode, completion in heard.items() if completion is not None}
    agree(found, turn(own, 0, start()))


def test_memory_that_runs_out_there_and_weights_that_do_not_arrive_are_noticed(ray: Any) -> None:
    """Where memory runs out fewer episodes at a time are tried, as with the built-in sampler."""
    there = RaySampler(qwen(), "fp32", actors=1, cpus=1, patience=600.0)

    def full() -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    there.submit(asked(0, 0, (30, 31)))
    there._engines[0].call = ray.remote(full).options(num_cpus=0).remote()
    with pytest.raises(MemoryError, match="Tried to allocate 2 GiB"):
        there.poll()
    there.load([("another", torch.ones(1))], 1)
    with pytest.raises(RunError, match=r"did not take the new weights \(KeyError: 'another'\); go on with --resume"):
        there.poll()


@pytest.mark.parametrize("wanted", [("--rollout.sampler", "ray"), ("--env.place", "ray", "--env.workers", "2")])
def test_without_a_cluster_nothing_is_made(
    wanted: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'envrl[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main(["train", "household-demo", "--quick", "--run", str(tmp_path / "run"), *wanted]) == 2
    said = capsys.readouterr().err
    assert f"no Ray cluster answers at {address}" in said
    assert "warm start" not in said
    assert not (tmp_path / "run").exists()


def test_an_actor_that_is_lost_again_and_again_ends_the_run(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there = RaySampler(qwen(), "fp32", actors=1, cpus=1, patience=600.0)
    begin = there._begin

    def begin_and_die() -> tuple[Any, Any, Any, float]:
        actor, began, loaded, due = begin()
        os.kill(ray.get(began), signal.SIGKILL)
        return actor, began, loaded, due

    monkeypatch.setattr(there, "_begin", begin_and_die)
    os.kill(ray.get(there._engines[0].began), signal.SIGKILL)
    there.submit(asked(0, 0, (30, 31)))
    with pytest.raises(
        RunError, match=rf"was lost, the {LOSSES}rd time before it answered \(.+\); go on with --resume"
    ):
        there.poll()


def test_no_room_is_said(ray: Any) -> None:
    said = "the processes have 3 samplers, each with 1 CPU of a node, and the Ray cluster has room for 2: add nodes, or"
    with pytest.raises(UserError, match=said):
        RaySampler(qwen(), "fp32", actors=3, cpus=1, patience=1.0)
    said = "1 sampler, each with 2 CPUs of a node, and the Ray cluster has room for 0: .* lower .* or rollout.ray.cpus"
    with pytest.raises(UserError, match=said):
        RaySampler(qwen(), "fp32", actors=1, cpus=2, patience=1.0)
    first = RaySampler(qwen(), "fp32", actors=2, cpus=1, patience=600.0)
    ray.get([engine.began for engine in first._engines])
    second = RaySampler(qwen(), "fp32", actors=1, cpus=1, patience=1.0)
    second.submit(asked(0, 0, (30, 31)))
    with pytest.raises(RunError, match="found no room on the Ray cluster in 1 s: go on with --resume once there is"):
        second.poll()


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_whose_episodes_an_actor_plays_is_the_run_without(cluster: Any, tmp_path: Path, ahead: int) -> None:
    """One actor has the batches that the process itself would have, so all is equal bit for bit."""
    short = {"train.updates": 3, "rollout.ahead": ahead, "warm_start.demonstrations": 10}
    train(tmp_path / "here", "--processes", 1, **short)
    train(tmp_path / "there", "--ray", cluster.address, **short, **{"rollout.sampler": "ray"})
    assert lines(tmp_path / "there") == lines(tmp_path / "here")
    assert lines(tmp_path / "there", "eval.jsonl") == lines(tmp_path / "here", "eval.jsonl")


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ("ModuleNotFoundError: No module named 'envrl'", "named 'envrl'): install this version of 'envrl[ray]' on"),
        (
            "torch.OutOfMemoryError: CUDA out of memory",
            "out of memory): a copy of the model does not fit on its device",
        ),
    ],
)
def test_a_node_that_cannot_start_one_is_said(why: str, words: str) -> None:
    there, engine = object.__new__(RaySampler), SimpleNamespace(losses=0)
    said = f"The actor died because of an error raised in its creation task\n{why}"
    with pytest.raises(UserError, match=re.escape(words)):
        there._replace(engine, said)  # type: ignore[arg-type]
