"""Worlds in worker processes: the same answers as in this one, whatever happens to the workers.

Their workers import this file, so it imports nothing that takes long.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from envrl.envs import fork_server, make, register_env
from envrl.envs.pool import ProcessPool, Worlds
from envrl.envs.registry import maker
from envrl.envs.vector import LocalWorlds, Start, VectorEnv
from envrl.envs.wire import Inbox, pack
from envrl.errors import RunError, UserError
from envrl.types import Observation, Step, Task

TASKS = [Task(str(number), "train", seed=number) for number in range(7)]


class Counter:
    """Says how many commands it has heard, and in `notes` who played; ill luck comes with certain commands."""

    def __init__(self, notes: str = "") -> None:
        self.notes = Path(notes)

    def tasks(self, split: str) -> list[Task]:
        return TASKS

    def reset(self, task: Task, seed: int = 0) -> Observation:
        self.task, self.heard = task, [str(seed)]
        return Observation(f"Task {task.id} with seed {seed}.", ("wait", "go"))

    def step(self, action: str) -> Step:
        self.heard.append(action)
        kind, _, argument = action.partition(" ")
        if kind in ILLS and self.once(argument):
            ILLS[kind]()
        return Step(Observation(" ".join(self.heard), ("wait",)), len(self.heard), False, False, {"pid": os.getpid()})

    def once(self, name: str) -> bool:
        """Return whether this is the first time that `name` is met, in all processes; without a name it always is."""
        mark = self.notes / name
        first = not name or not mark.exists()
        if name:
            mark.touch()
        return first


def rubbish() -> None:
    """Write on every open file that is a socket what is no message."""
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if number > 2 and stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, b"rubbish, and more than a header's length of it")


def raise_error() -> None:
    raise ValueError("a bad day")


def user_error() -> None:
    raise UserError("the game is damaged; take another")


ILLS: dict[str, Callable[[], Any]] = {
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: time.sleep(3600),
    "rubbish": rubbish,
    "raise": raise_error,
    "mistake": user_error,
}


def pool_of(notes: Path, workers: int = 2, timeout: float = 60.0) -> ProcessPool:
    return ProcessPool(partial(Counter, str(notes)), workers, timeout)


def said(worlds: VectorEnv, rounds: list[list[str]]) -> list[list[str | None]]:
    """Return what each episode's world says: first, and then to one command a round."""
    first = worlds.reset([Start(slot, task, task.seed) for slot, task in enumerate(TASKS)])
    told: list[list[str | None]] = [[observation and observation.text] for observation in first]
    for commands in rounds:
        for slot, step in enumerate(worlds.step(list(enumerate(commands)))):
            told[slot].append(step and f"{step.observation.text} {step.reward}")
    return told


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and waits to be noticed does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(parent: int) -> list[int]:
    """Return the processes that a process has started and not waited for, ended ones included."""
    found = []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            found += [pid] if parent_of(pid) == parent else []
    return sorted(found)


def wait_until(condition: Callable[[], bool]) -> bool:
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.05)
    return False


PLAIN = [[f"go {slot} {turn}" for slot in range(7)] for turn in range(5)]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_answers(tmp_path: Path, workers: int) -> None:
    pool = pool_of(tmp_path, workers)
    assert said(pool, PLAIN) == said(LocalWorlds(Counter), PLAIN)
    assert said(pool, PLAIN[:2]) == said(LocalWorlds(Counter), PLAIN[:2])
    assert pool.replaced == 0
    steps = pool.step([(slot, "where") for slot in range(7)])
    used = [step.info["pid"] for step in steps if step]
    assert used == [pool.pids()[slot % workers] for slot in range(7)]
    assert os.getpid() not in used
    pool.close()
    assert not any(map(alive, used))


@pytest.mark.parametrize("ill", ["die", "exit", "stop", "hang", "rubbish", "raise"])
def test_an_episode_goes_on_as_if_nothing_had_happened(tmp_path: Path, ill: str) -> None:
    rounds = [list(commands) for commands in PLAIN]
    rounds[2][3] = f"{ill} first"
    rounds[4][6] = f"{ill} second"
    expected = said(LocalWorlds(partial(Counter, str(tmp_path))), [[f"~{c}" for c in commands] for commands in rounds])
    silent = ill in ("stop", "hang")
    pool = pool_of(tmp_path, timeout=2.0 if silent else 60.0)
    told = said(pool, rounds)
    assert [[text and text.replace("~", "") for text in episode] for episode in expected] == told
    assert pool.set_aside == {}
    assert pool.replaced == 2 or (silent and pool.replaced > 2)  # on a busy machine others may be silent as long
    assert sorted(mark.name for mark in tmp_path.iterdir()) == ["first", "second"]


@pytest.mark.parametrize(
    ("ill", "reason"),
    [
        ("die", "it was killed by signal 9"),
        ("exit", "it ended with status 3"),
        ("rubbish", "it sent bytes that are no message"),
        ("raise", "it raised ValueError: a bad day"),
    ],
)
def test_a_task_that_fails_again_and_again_is_set_aside_and_named(tmp_path: Path, ill: str, reason: str) -> None:
    rounds = [list(commands) for commands in PLAIN]
    rounds[1][2] = ill
    pool = pool_of(tmp_path)
    with pytest.warns(UserWarning, match="set aside the task '2': its world failed 3 times, ") as warned:
        told = said(pool, rounds)
    assert len(warned) == 1
    expected = said(LocalWorlds(Counter), PLAIN)
    assert told[:2] + told[3:] == expected[:2] + expected[3:]
    assert told[2] == [*expected[2][:2], None, None, None, None]
    assert pool.set_aside == {"2": reason}
    assert pool.replaced == 3
    assert said(pool, PLAIN)[2] == [None] * 6  # it is not tried again
    assert pool.replaced == 3


def test_a_worker_that_is_killed_between_two_calls_is_nobodys_fault(tmp_path: Path) -> None:
    pool, local = pool_of(tmp_path), LocalWorlds(Counter)
    assert said(pool, PLAIN) == said(local, PLAIN)
    for number in range(4):
        for pid in pool.pids():
            os.kill(pid, signal.SIGKILL)
        commands = [(slot, f"go {number}") for slot in range(7)]
        answers = [step and step.observation.text for step in pool.step(commands)]
        assert answers == [step and step.observation.text for step in local.step(commands)]
    assert (pool.replaced, pool.set_aside) == (8, {})


def test_workers_killed_and_stopped_at_random_change_nothing(tmp_path: Path) -> None:
    pool, draw, over = pool_of(tmp_path, timeout=2.0), random.Random(0), threading.Event()
    playing: set[int] = set()  # one that is hit before it has begun is only missed after two minutes
    hits: list[int] = []

    def torment() -> None:
        while not over.wait(0.1):
            pid = draw.choice(sorted(playing & set(pool.pids())) or [0])
            playing.discard(pid)
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, draw.choice([signal.SIGKILL, signal.SIGSTOP]))
                    hits.append(pid)

    thread = threading.Thread(target=torment)
    thread.start()
    local = LocalWorlds(Counter)
    starts = [Start(slot, task, task.seed) for slot, task in enumerate(TASKS)]
    try:
        while len(hits) < 6:
            assert pool.reset(starts) == local.reset(starts)
            for turn in range(30):
                commands = [(slot, f"go {turn}") for slot in range(7)]
                steps = [step for step in pool.step(commands) if step]
                assert [step.observation for step in steps] == [s.observation for s in local.step(commands) if s]
                playing |= {step.info["pid"] for step in steps}
    finally:
        over.set()
        thread.join()
    commands = [(slot, "go 30") for slot in range(7)]  # those that were hit last are missed now
    steps = [step for step in pool.step(commands) if step]
    assert [step.observation for step in steps] == [s.observation for s in local.step(commands) if s]
    assert pool.replaced >= len(set(hits)) > 1
    assert pool.set_aside == {}


@pytest.mark.parametrize("ill", [signal.SIGKILL, signal.SIGSTOP])
def test_a_fork_server_that_dies_or_is_stopped_is_replaced(tmp_path: Path, ill: signal.Signals) -> None:
    pool, local = pool_of(tmp_path, 3), LocalWorlds(Counter)
    assert said(pool, PLAIN) == said(local, PLAIN)
    first, mother = pool.pids(), parent_of(pool.pids()[0])
    assert mother != os.getpid()
    os.kill(mother, ill)
    os.kill(first[0], signal.SIGKILL)
    assert wait_until(lambda: not alive(first[0]))
    for turn in range(3):  # a fork server that is stopped cannot say that the worker has ended; its connection does
        commands = [(slot, f"go {turn}") for slot in range(7)]
        assert [step and step.observation for step in pool.step(commands)] == [
            step and step.observation for step in local.step(commands)
        ]
    assert not set(first) & set(pool.pids())
    assert {parent_of(pid) for pid in pool.pids()} == set(pool.processes()) - set(pool.pids())
    assert (pool.replaced, pool.set_aside) == (3, {})
    assert wait_until(lambda: not any(map(alive, [mother, *first])))


def test_the_processes_of_a_pool_are_waited_for_when_they_have_ended(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, 3)
    said(pool, PLAIN)
    mother = parent_of(pool.pids()[0])
    assert mother in children_of(os.getpid())
    for _ in range(3):
        os.kill(pool.pids()[1], signal.SIGKILL)
        pool.step([(slot, "go") for slot in range(7)])
    assert wait_until(lambda: children_of(mother) == sorted(pool.pids()))
    pool.close()
    assert mother not in children_of(os.getpid())
    assert pool.processes() == []


class Telling(Counter):
    """Tells what its process is like."""

    def step(self, action: str) -> Step:
        files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
        about = {
            "threads": threading.active_count(),
            "pipes": sum("pipe:" in name for name in files if name != os.path.realpath("/proc/self/fd/2")),
            "sockets": sum("socket:" in name for name in files),
            "group": os.getpgid(0),
            "ignores": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            "output": os.path.realpath("/proc/self/fd/1"),
            "number": random.random(),
        }
        return Step(Observation("told"), 0.0, False, False, {"pid": os.getpid(), **about})


def test_a_worker_has_nothing_of_the_run_nor_of_the_other_workers() -> None:
    pool = ProcessPool(Telling, 3, 60.0)
    pool.reset([Start(slot, TASKS[slot], 0) for slot in range(3)])
    told = [step.info for step in pool.step([(slot, "tell") for slot in range(3)]) if step]
    for about in told:
        assert (about["threads"], about["pipes"], about["sockets"]) == (2, 1, 1)
        assert about["group"] == about["pid"]
        assert about["ignores"]
        assert about["output"] == "/dev/null"
    assert len({about["number"] for about in told}) == 3
    assert {parent_of(pid) for pid in pool.pids()} == set(pool.processes()) - set(pool.pids())


@pytest.mark.parametrize("ill", ["die", "exit"])
def test_without_a_fork_server_each_worker_is_an_interpreter(
    tmp_path: Path, ill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "_can_be_had", lambda: False)
    test_an_episode_goes_on_as_if_nothing_had_happened(tmp_path, ill)
    pool = pool_of(tmp_path)
    said(pool, PLAIN)
    assert pool.processes() == pool.pids()
    assert {parent_of(pid) for pid in pool.pids()} == {os.getpid()}
    pool.close()
    assert not set(children_of(os.getpid())) & set(pool.pids())


class Moody(Counter):
    """Answers by its process."""

    def reset(self, task: Task, seed: int = 0) -> Observation:
        super().reset(task, seed)
        return Observation(f"I am {os.getpid()}.")


def test_a_world_that_answers_otherwise_when_played_again_is_set_aside() -> None:
    pool = ProcessPool(Moody, 1, 60.0)
    assert pool.reset([Start(0, TASKS[0], 0)])[0] is not None
    os.kill(pool.pids()[0], signal.SIGKILL)
    with pytest.warns(UserWarning, match="it answered otherwise when the episode was played again"):
        assert pool.step([(0, "go")]) == [None]


def test_a_users_mistake_is_raised_here_and_the_pool_can_be_used_again(tmp_path: Path) -> None:
    pool = pool_of(tmp_path)
    rounds = [list(commands) for commands in PLAIN]
    rounds[1][0] = "mistake"
    with pytest.raises(UserError, match=r"^the game is damaged; take another$"):
        said(pool, rounds)
    assert pool.pids() == []
    assert said(pool, PLAIN) == said(LocalWorlds(Counter), PLAIN)


def test_what_cannot_begin_ends_the_run_with_a_sentence() -> None:
    class Here(Counter):
        """A class that no other process can import."""

    with pytest.raises(UserError, match=r"cannot be made in worker processes .* set env\.workers = 0"):
        ProcessPool(Here, 1, 60.0)
    for begins, reason in ((Undone((os._exit, (7,))), "it ended with status 7"), (Undone((int, ("x",))), "ValueError")):
        pool = ProcessPool(partial(Counter, begins), 1, 60.0)  # type: ignore[arg-type]
        with pytest.raises(RunError, match=f"no worker process could begin to play, in 3 attempts: .*{reason}"):
            pool.reset([Start(0, TASKS[0], 0)])


class Undone:
    """When it is read from a pickle, a function is called instead."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


PARENT = """
import os, signal, sys, threading, time
from functools import partial
from envrl.envs.pool import ProcessPool
from envrl.envs.vector import Start
from test_pool import TASKS, Counter

pool = ProcessPool(partial(Counter, sys.argv[1]), 2, 60.0)
pool.reset([Start(slot, task, 0) for slot, task in enumerate(TASKS)])
print(*pool.processes(), flush=True)
if sys.argv[2] == "stopped":
    [os.kill(pid, signal.SIGSTOP) for pid in pool.processes()]
if sys.argv[2] == "busy":
    threading.Thread(target=pool.step, args=([(0, "hang"), (1, "hang")],), daemon=True).start()
    time.sleep(0.5)
{end}
"""


@pytest.mark.parametrize("workers", ["idle", "busy", "stopped"])
@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "sys.exit(0)", "raise ValueError", "del pool"]
)
def test_workers_end_with_their_parent_however_it_ends(tmp_path: Path, workers: str, end: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PARENT.format(end=end), str(tmp_path), workers],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=120,
        check=False,
    )
    pids = [int(pid) for pid in ran.stdout.split()]
    assert len(pids) == 3  # the fork server is one of them
    assert wait_until(lambda: not any(map(alive, pids)))
    assert ran.returncode == {"raise ValueError": 1, "os.kill(os.getpid(), signal.SIGKILL)": -9}.get(end, 0)


def test_messages_are_whole_or_refused() -> None:
    messages = [("a", 1), Observation("text", ("go",)), None]
    data = b"".join(map(pack, messages))
    inbox = Inbox()
    assert [m for index in range(len(data)) for m in inbox.feed(data[index : index + 1])] == messages
    flipped = bytearray(data)
    flipped[20] ^= 1
    huge = bytearray(data)
    huge[4] = 255
    for bad, reason in ((flipped, "wrong checksum"), (huge, "no message"), (b"Warning: something\n", "no message")):
        inbox = Inbox()
        assert inbox.feed(data + bytes(bad)) == messages  # those before it count
        assert reason in inbox.garbled
        assert inbox.feed(data) == []


class Endless(Counter):
    """Takes commands of a megabyte, and tells what cannot be sent."""

    def step(self, action: str) -> Step:
        info = {"function": lambda: None} if action == "secret" else {}
        return Step(Observation(f"{len(action)} {action[-3:]!r}", None, info), 0.5, False, False)


def test_long_and_odd_texts_pass_and_what_cannot_be_sent_is_a_failure() -> None:
    pool = ProcessPool(Endless, 2, 60.0)
    pool.reset([Start(slot, TASKS[slot], 0) for slot in range(4)])
    odd = ["look " * 400_000, "\ud800", "\x00\n", ""]
    assert [step and step.observation.text for step in pool.step(list(enumerate(odd)))] == [
        f"{len(command)} {command[-3:]!r}" for command in odd
    ]
    with pytest.warns(UserWarning, match="its answer cannot be sent"):
        assert pool.step([(0, "secret"), (1, "go")]) == [None, Step(Observation("2 'go'"), 0.5, False, False)]


def test_a_world_stays_in_this_process_unless_it_is_slow_or_workers_are_asked_for() -> None:
    class Slow(Counter):
        slow = True

    assert Worlds(Counter, -1).workers == Worlds(Slow, 0).workers == 0
    assert isinstance(Worlds(Counter, -1).vector(), LocalWorlds)
    assert Worlds(Slow, -1).workers >= 1
    worlds = Worlds(Counter, 2)
    assert isinstance(worlds(), Counter)
    assert isinstance(worlds.vector(), ProcessPool)
    assert worlds.vector() is worlds.vector()


def test_a_registered_world_plays_in_workers_too() -> None:
    register_env("counter", Counter)
    tasks = make("counter").tasks("train")
    pool = ProcessPool(maker("counter"), 1, 60.0)
    assert pool.reset([Start(0, tasks[1], 5)]) == LocalWorlds(Counter).reset([Start(0, tasks[1], 5)])
    household = ProcessPool(maker("household"), 1, 60.0)
    task = make("household").tasks("valid_seen")[0]
    assert household.reset([Start(0, task, 0)]) == [make("household").reset(task)]
