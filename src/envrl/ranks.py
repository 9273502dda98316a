"""The processes that train one run together: which of them this one is, and what they tell each other.

They are started by `torchrun` (`envrl train … --processes N`), which sets RANK, LOCAL_RANK and WORLD_SIZE. Where a run
has one process everything here is immediate and needs no torch.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

from envrl.errors import Interrupted, OthersEnded, UserError

T = TypeVar("T")

BUDGET = "ENVRL_MICRO_BATCH_TOKENS"
"""The environment variable with the token budget of processes that were started again with less."""
PATIENCE = timedelta(days=2)
"""How long one waits for the others, which may play long. One that dies is seen at once, by its connection."""
JOIN = timedelta(minutes=10)
"""How long one waits at the start for the others to come, as torchrun does."""

OTHERS_ENDED = "another process of the run has ended, so it cannot go on: go on with --resume"
"""What a process says that has lost another one."""

_LOST = ("gloo/transport", "remote process exited")
"""What gloo and NCCL say where the connection to another process is lost."""


def expected() -> int:
    """Return how many processes were started together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count() -> int:
    """Return how many processes have joined."""
    group = _group()
    return group.get_world_size() if group else 1


def number() -> int:
    """Return which of the processes this is, from 0."""
    group = _group()
    return group.get_rank() if group else 0


def is_first() -> bool:
    """Return whether this process writes the run's files and speaks to the user."""
    return expected() == 1 or int(os.environ.get("RANK", "0")) == 0  # a scheduler may set RANK alone


@contextmanager
def joined(device: str, *, alone: bool = False) -> Iterator[None]:
    """Be one of the processes while the block runs: over gloo on CPUs, NCCL on GPUs.

    `alone`: make the group of a single process, too. Raises `UserError` where the processes do not meet, and
    `OthersEnded` where another one ends before this one.
    """
    if expected() == 1 and not alone:
        yield
        return
    dist: Any = import_module("torch.distributed")
    if device.startswith("cuda"):
        _take_device(device)
    store, rank, count = (dist.HashStore(), 0, 1) if expected() == 1 else _met(dist)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE, store=store, rank=rank, world_size=count)
    try:
        yield
    except RuntimeError as error:
        if not any(mark in str(error) for mark in _LOST):
            raise
        raise OthersEnded(OTHERS_ENDED) from error
    finally:
        _CHANNEL.__dict__.clear()
        dist.destroy_process_group()


def _met(dist: Any) -> tuple[Any, int, int]:
    """Return the store through which the processes find each other, this one's number and how many there are.

    Raises `UserError` where a variable of torchrun's is missing, the port is taken, or another process does not come.
    """
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=JOIN))
    except ValueError as error:
        raise UserError(
            f"WORLD_SIZE = {expected()} says that several processes train together, and they cannot find each other "
            f"({error}): start them with torchrun or --processes"
        ) from error
    except dist.DistError as error:
        where = f"MASTER_ADDR:MASTER_PORT = {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if "EADDRINUSE" in str(error):
            raise UserError(f"{where}, where the processes are to meet, is taken: choose another port") from error
        raise UserError(
            f"process {os.environ['RANK']} of {expected()} waited for the others at {where}, and in "
            f"{JOIN.total_seconds():g} s not all have come: start all of them, with the same address and port"
        ) from error
    store.set_timeout(PATIENCE)
    return store, rank, count


def _take_device(device: str) -> None:
    """Have this process use the device of its place among those of its machine."""
    cuda, place = import_module("torch").cuda, int(os.environ.get("LOCAL_RANK", "0"))
    if place >= cuda.device_count():
        raise UserError(
            f"train.device = '{device}': process {place} of this machine needs a CUDA device of its own, and there are "
            f"{cuda.device_count()}: start fewer processes, or set train.device = 'cpu'"
        )
    cuda.set_device(place)


def gather(thing: T) -> list[T]:
    """Return what each process gives, in their order; all of them call this at the same point."""
    group = _others()
    if group is None:
        return [thing]
    found: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(found, thing, group=_CHANNEL.group)
    return found


def of_first(make: Callable[[], T]) -> T:
    """Return in all processes what the first of them makes; all of them call this at the same point."""
    group = _others()
    if group is None:
        return make()
    told: list[Any] = [make() if is_first() else None]
    group.broadcast_object_list(told, src=0, group=_CHANNEL.group)
    return told[0]


def dealt(groups: Sequence[int]) -> list[int]:
    """Return the places of this process, given the group number of each place: whole groups go to one process."""
    return [place for place, group in enumerate(groups) if group % count() == number()]


def in_order(mine: Sequence[int], found: Sequence[T]) -> list[T]:
    """Return what all processes have found, each for its places, in the places' order; all call this at one point."""
    parts = gather((list(mine), list(found)))
    table = {place: thing for places, things in parts for place, thing in zip(places, things, strict=True)}
    return [table[place] for place in sorted(table)]


def agree(poll: Callable[[], None]) -> None:
    """Raise `Interrupted` in all processes where `poll` does in one of them; all call this at the same point."""
    try:
        poll()
        asked = False
    except Interrupted:
        asked = True
    if any(gather(asked)):
        raise Interrupted("interrupted")


def channel() -> Callable[[], None]:
    """Make a connection among all processes, which call this at the same point, for what is gathered in one thread.

    Return a function to call in that thread: what two threads gather must not be mistaken for one another.
    """
    group = _group()
    made = group.new_group(backend="gloo", timeout=PATIENCE) if group else None  # what is no tensor lies on no GPU

    def join() -> None:
        if made is not None:
            _CHANNEL.group = made

    return join


def wait() -> None:
    """Wait until all processes are here."""
    gather(None)


_CHANNEL = threading.local()


def _others() -> Any:
    """Return `torch.distributed` where there are other processes, with a connection of this thread; else None."""
    group = _group()
    if group is None or group.get_world_size() == 1:
        return None
    if not hasattr(_CHANNEL, "group"):
        channel()()
    return group


def _group() -> Any:
    """Return `torch.distributed` where this process has joined others, else None."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None
