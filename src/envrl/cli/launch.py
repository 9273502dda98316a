"""`envrl train … --processes N`: the same command in N processes of this machine, as torchrun starts them."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from envrl import ranks
from envrl.errors import UserError
from envrl.processes import end_with, own_signals

AGAIN = 75
"""The status of a process whose memory ran out where less can be tried (EX_TEMPFAIL of BSD's sysexits)."""
OTHERS = 76
"""The status of a process that has lost the others, and knows not why: where that is all, they lost each other."""
LAUNCHER = "ENVRL_LAUNCHER"
"""The environment variable with the id of the process that started this one."""
PATIENCE = 3600
"""Seconds that the processes have for finishing an update and saving it, after which they are killed."""


def launch(arguments: Sequence[str], count: int, budget: int) -> int:
    """Run `envrl train` with these arguments in so many processes; return the status of the one that failed, or 0.

    Ctrl-C and SIGTERM are passed on to them: they stop together between two updates. Where one dies the others are
    ended. Where memory runs out in one, all of them go on from the last checkpoint with half the token `budget`.
    """
    ours = {LAUNCHER: str(os.getpid()), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    while (status := _start(arguments, count, ours)) == AGAIN:
        budget //= 2
        ours[ranks.BUDGET] = str(budget)
        arguments = [*arguments, *(["--resume"] if "--resume" not in arguments else [])]
        print(
            f"envrl: memory ran out in one of the {count} processes; they go on from the last checkpoint with "
            f"train.micro_batch_tokens = {budget}",
            file=sys.stderr,
            flush=True,
        )
    return status


def _start(arguments: Sequence[str], count: int, variables: Mapping[str, str]) -> int:
    """Run the processes once, with these environment variables; return the status of the one that failed, or 0."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _silence()
    newer: dict[str, Any] = {"shutdown_timeout": PATIENCE}  # where torch has no such setting it is half a minute
    known = {field.name for field in fields(LaunchConfig)}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        max_restarts=0,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        signals_to_handle="SIGINT,SIGTERM",
        **{name: value for name, value in newer.items() if name in known},
    )
    before = dict(os.environ)
    os.environ |= variables
    try:
        with own_signals():  # this process is none of the run's, and torch leaves variables and handlers behind
            elastic_launch(config, sys.executable)("-m", "envrl", "train", *arguments)
    except ChildFailedError as error:
        status = cause([(failure.timestamp, failure.exitcode) for failure in error.failures.values()])
        if status < 0:
            print(f"envrl: a process of the run was ended by signal {-status}; go on with --resume", file=sys.stderr)
        return status if status > 0 and status != OTHERS else 1
    except SignalException:  # they were told, and have saved
        return 130
    finally:
        os.environ.clear()
        os.environ |= before
    return 0


def _silence() -> None:
    """Keep torchrun's log off the terminal, where LOGLEVEL is not set: each process says itself what went wrong."""
    if "LOGLEVEL" not in os.environ:  # too late for the variable: some of its modules are loaded by now
        for name in logging.root.manager.loggerDict:
            if name.startswith("torch.distributed.elastic"):
                logging.getLogger(name).setLevel(logging.CRITICAL)


def cause(ends: Sequence[tuple[float, int]]) -> int:
    """Return the status behind the (time, status) of processes that failed.

    Those that lost the others, or were told to stop for it, may end before the one that failed.
    """
    unsure = {1: 1, -signal.SIGTERM: 1, OTHERS: 2}
    return min(ends, key=lambda end: (unsure.get(end[1], 0), end[0]))[1]


def was_launched() -> bool:
    """Return whether this process is one of `launch`."""
    return LAUNCHER in os.environ


def end_with_launcher() -> None:
    """Have this process end with the one that launched it, where there is one."""
    if parent := os.environ.get(LAUNCHER):
        end_with(int(parent))


def check_count(count: int) -> None:
    """Raise `UserError` where processes cannot be started from here."""
    if count < 1:
        raise UserError(f"--processes must be at least 1, not {count}")
    if "WORLD_SIZE" in os.environ:
        raise UserError("--processes starts the processes itself: leave it out under torchrun")
