"""Which of the processes that train together this one is."""

from __future__ import annotations

import socket
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from boxes import tiny
from envrl import ranks
from envrl.errors import UserError
from envrl.progress import Reporter
from envrl.rollout.scheduler import RolloutStats
from envrl.trainer import rollouts
from envrl.types import Assignment, Task


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "1"}, True),
        ({"RANK": "1", "WORLD_SIZE": "1"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
    ],
)
def test_a_single_process_writes_its_files_whatever_rank_it_is_given(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler may set RANK without WORLD_SIZE: a run that took that for its own wrote nothing, with status 0."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks.is_first() is first


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_never_comes_is_said(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "JOIN", timedelta(seconds=1))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    for name, value in (("WORLD_SIZE", "2"), ("RANK", rank), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, value)
    said = (
        f"process {rank} of 2 waited for the others at .* = 127.0.0.1:{port}, and in 1 s not all have come: start all"
    )
    with pytest.raises(UserError, match=said), ranks.joined("cpu"):
        pass


def test_a_port_that_is_taken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=rf"127.0.0.1:{port}, where .* is taken: choose"), ranks.joined("cpu"):
            pass


def test_each_round_of_an_update_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes, this one with 1 mismatch and 1 replaced worker a round, the other with 2 and 3."""
    here, there = (SimpleNamespace(task=Task(name, "train"), policy_version=1) for name in ("here", "there"))

    def gather(mine: Any) -> list[Any]:
        plans, found = isinstance(mine, list), isinstance(mine[0], list)
        return [mine, mine if plans else ([1], [there]) if found else (2, 3)]

    def play_episodes(*_: object, stats: RolloutStats, **__: object) -> list[Any]:
        stats.mismatches += 1
        stats.replaced += 1
        return [here]

    monkeypatch.setattr(ranks, "gather", gather)
    monkeypatch.setattr(ranks, "dealt", lambda groups: [0])
    monkeypatch.setattr(rollouts, "play_episodes", play_episodes)
    config, splitter = tiny(), SimpleNamespace(play=lambda count, play: play(range(count)))
    memory, policy = SimpleNamespace(teller=lambda *_: None), SimpleNamespace(renderer=None)
    played: Any = rollouts.Rollouts(config, None, None, policy, splitter, lambda: None, Reporter(silent=True), memory)  # type: ignore[arg-type]
    playing = [rollouts.Playing(group, Assignment(each.task, 1, 4), 0) for group, each in enumerate((here, there))]
    stats = RolloutStats()
    for update in (1, 2):
        groups = played._round(playing, update, stats, None)
        assert [group.task.id for group in groups] == ["here", "there"]
    assert (stats.mismatches, stats.replaced) == (6, 8)


def test_processes_that_cannot_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=r"MASTER_ADDR expected.*start them with torchrun"), ranks.joined("cpu"):
        pass


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with (
        pytest.raises(UserError, match=r"process 1 .* needs a CUDA device of its own, and there are 1"),
        ranks.joined("cuda"),
    ):
        pass
