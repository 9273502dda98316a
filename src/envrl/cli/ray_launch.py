"""`envrl train … --ray ADDRESS`: the processes of `--processes N` over the nodes of a Ray cluster, begun again at need.

Ray places them, says when a node or a process of them is gone, and finds others. What they do, and how they talk to
each other, is what they do under torchrun: one that is lost takes the others with it, and all go on from the last
checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from envrl import ranks
from envrl.cli.cluster import check_size, kind_of, needs_of, nodes_alive, room, size_of, some
from envrl.cli.launch import AGAIN, LAUNCHER, OTHERS, PATIENCE, cause
from envrl.cli.rank_host import Place, RankHost, in_order, variables_of
from envrl.clusters import connected
from envrl.config.schema import Config
from envrl.envs.ray_hosts import VARIABLES
from envrl.errors import Interrupted, RunError, UserError
from envrl.trainer.signals import StopRequest, stop_on_signals

WAIT = 600.0
"""Seconds that a run waits for room in the cluster unless `--ray-patience` says otherwise."""
ATTEMPTS = 3
"""Losses in a row, nothing saved between them, after which the run has failed."""
GRACE = 60.0
"""Seconds from the first process that failed until the others are ended: Ray notices a dead node within that."""
LOST = -signal.SIGKILL
"""The status of a process that is gone with its actor or node."""
_PAUSE = 0.2  # seconds between two looks at the processes
_LONGER = 60.0  # seconds between two sentences while the run waits
_FRESH = 5.0  # seconds after which the number of nodes is asked for again
_SAYS = {130: "the processes were told to stop, not by this one", OTHERS: "the processes lost each other"}
"""What the statuses mean with which all end though none of them failed."""

Ends = dict[int, tuple[float, int]]
"""When each process that has ended did so, and its status, by rank."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the cluster is to run: each process's command line, the run, how many on what, and how long it may wait."""

    arguments: tuple[str, ...]
    run: Path
    count: int
    device: str
    patience: float


def launch_on_ray(
    arguments: Sequence[str], run: Path, config: Config, address: str, count: int | None, patience: float
) -> int:
    """Run `envrl train` with these arguments in processes over a Ray cluster; return the status, as `launch` does.

    Where a process, its actor or its node is lost, all of them go on from the last checkpoint once there is room.
    Raises `UserError` where the cluster does not answer, is too small or lacks shared storage, and `RunError` where
    room does not come back within `patience` seconds.
    """
    ray, needs = connected(address, holds_weights=config.rollout.sampler == "ray"), needs_of(config)
    try:
        there = ray.cluster_resources()
        job = Job(tuple(arguments), run.absolute(), count or room(there, needs), needs.device, patience)
        check_size(there, nodes_alive(ray), job.count, needs)
        with stop_on_signals(only_count=True) as stops:
            return _Launcher(ray, job, stops).run(config.train.micro_batch_tokens)
    finally:
        ray.shutdown()


class _Gone(Exception):
    """An actor or its node is gone."""


class _Launcher:
    """Starts the processes, watches them, and starts them again; see `launch_on_ray`."""

    def __init__(self, ray: Any, job: Job, stops: StopRequest) -> None:
        self._ray, self._job, self._stops = ray, job, stops
        self._restarts, self._why = 0, ""
        self._nodes, self._looked = 0, float("-inf")
        self._said: set[str] = set()

    def run(self, budget: int) -> int:
        """Start the processes until they end by themselves; return the status."""
        ours = {name: value for name, value in os.environ.items() if name.startswith(VARIABLES)}
        ours["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
        in_vain = 0
        while True:
            before, self._why = _saved(self._job.run), ""
            status = self._attempt(ours)
            if status == AGAIN:
                budget //= 2
                ours[ranks.BUDGET] = str(budget)
                _say(
                    f"memory ran out in one of the {self._job.count} processes; they go on from the last checkpoint "
                    f"with train.micro_batch_tokens = {budget}"
                )
                continue
            lost = status < 0 or status in _SAYS
            if self._stops.count and lost:
                if status < 0:
                    raise Interrupted(f"interrupted; {self._why}; what was saved before is kept")
                return 130
            if not lost:
                return status
            self._restarts, self._why = self._restarts + 1, _SAYS.get(status, self._why)
            in_vain = 0 if _saved(self._job.run) != before else in_vain + 1
            if in_vain == ATTEMPTS:
                raise RunError(f"{self._why}, the {ATTEMPTS}rd time before anything was saved; go on with --resume")
            _say(f"{self._why}; all go on from the last checkpoint (restart {self._restarts})")

    def _attempt(self, ours: Mapping[str, str]) -> int:
        """Place the processes, start them and watch them to their end; return the status, below 0 for a loss."""
        with self._placed() as hosts:
            try:
                places = self._get([host.place.remote() for host in hosts], self._job.patience)
                order = in_order(places)
                hosts, places = [hosts[number] for number in order], [places[number] for number in order]
                self._check_storage(hosts, places)
                self._start(hosts, places, ours)
            except _Gone as error:
                self._why = f"a node was lost before all had begun ({error})"
                return LOST
            status = self._watch(hosts, places)
            for ended in [host.end.remote() for host in hosts]:
                with suppress(_Gone):
                    self._get([ended])
            return status

    @contextmanager
    def _placed(self) -> Iterator[list[Any]]:
        """Wait for room, and give each process an actor, as close together as can be; they are gone with the block."""
        ray, util = self._ray, import_module("ray.util")
        strategy: Any = import_module("ray.util.scheduling_strategies").PlacementGroupSchedulingStrategy
        gpus = int(kind_of(self._job.device) == "GPU")
        bundle = {"CPU": 1.0, **({"GPU": 1.0} if gpus else {})}
        group, hosts = util.placement_group([bundle] * self._job.count, strategy="PACK"), []
        try:
            self._wait(lambda: group.wait(_PAUSE), "for room in the cluster")
            hosts += [
                ray.remote(RankHost)
                .options(num_cpus=1, num_gpus=gpus, scheduling_strategy=strategy(group, number))
                .remote()
                for number in range(self._job.count)
            ]
            yield hosts
        finally:
            for host in hosts:
                ray.kill(host)
            util.remove_placement_group(group)

    def _wait(self, is_there: Callable[[], bool], what: str) -> None:
        """Wait until something is there, and say so now and then."""
        job, begun, due = self._job, time.monotonic(), 1.0
        while not is_there():
            if self._stops.count:
                raise Interrupted(f"interrupted while it waited {what}; go on with --resume")
            waited = time.monotonic() - begun
            if waited > job.patience:
                raise RunError(f"waited {waited:.0f} s in vain {what}; go on with --resume, or raise --ray-patience")
            if waited > due:
                due = waited + _LONGER
                there = size_of(self._ray.cluster_resources(), nodes_alive(self._ray))
                _say(
                    f"waiting {what}, which has {there}, for {some(job.count, 'process', 'processes')} with a "
                    f"{kind_of(job.device)} each (at most {job.patience:g} s, --ray-patience)"
                )

    def _check_storage(self, hosts: Sequence[Any], places: Sequence[Place]) -> None:
        """Raise `UserError` where a node lacks this folder, or does not see what the first process writes."""
        folder, run = Path.cwd(), self._job.run
        there = self._get([host.sees.remote(folder) for host in hosts])
        if not all(there):
            raise UserError(
                f"the node {places[there.index(False)].address} has no folder {folder}: start the run in a folder that "
                "all nodes share"
            )
        (token,) = self._get([hosts[0].leave_token.remote(run)])
        try:
            seen = self._get([host.sees.remote(token) for host in hosts])
        finally:
            self._get([hosts[0].remove_token.remote(token)])
        if not all(seen):
            raise UserError(
                f"the node {places[seen.index(False)].address} does not see what {places[0].address} writes into "
                f"{token.parent}: a run's directory must be on storage that all nodes share; name one with --run"
            )

    def _start(self, hosts: Sequence[Any], places: Sequence[Place], ours: Mapping[str, str]) -> None:
        """Start the processes, once one of a lost node has stopped writing, where there is one."""
        job, first = self._job, hosts[0]
        self._wait(lambda: not self._get([first.is_held.remote(job.run)])[0], "until a lost process has ended")
        has_run, port = self._get([first.has_run.remote(job.run), first.free_port.remote()])
        resume = ["--resume"] if has_run and "--resume" not in job.arguments else []
        arguments = ["train", *job.arguments, *resume]
        self._said.clear()
        self._get(
            [
                host.start.remote(arguments, Path.cwd(), {**ours, **own, LAUNCHER: str(place.pid)})
                for host, place, own in zip(hosts, places, variables_of(places, port), strict=True)
            ]
        )

    def _watch(self, hosts: Sequence[Any], places: Sequence[Place]) -> int:
        """Pass on stops, and what the processes say, until there is nothing to wait for; return the run's status."""
        ends: Ends = {}
        polls: dict[int, Any] = {}
        passed, deadline = 0, float("inf")
        while not is_over(ends, len(hosts), time.monotonic()) and time.monotonic() < deadline:
            if passed < self._stops.count:
                passed, deadline = passed + 1, time.monotonic() + PATIENCE
                for host in hosts:
                    host.stop.remote()
            for rank, host in enumerate(hosts):
                if rank not in ends and rank not in polls:
                    polls[rank] = host.poll.remote()
            time.sleep(_PAUSE)
            for rank in [rank for rank, poll in polls.items() if self._ray.wait([poll], timeout=0)[0]]:
                status = self._polled(rank, polls.pop(rank), places[rank])
                if status is not None:
                    ends[rank] = (time.monotonic(), status)
        failed = [end for end in ends.values() if end[1]]
        return cause(failed) if failed else 0 if len(ends) == len(hosts) else 130

    def _polled(self, rank: int, poll: Any, place: Place) -> int | None:
        """Print what a process says; return its status once it has ended."""
        try:
            text, status = self._get([poll])[0]
        except _Gone as error:
            self._why = f"process {rank} on {place.address} was lost ({error})"
            return LOST
        for line in text.splitlines():
            if not line.startswith("envrl: "):
                print(f"[{self._state() if rank == 0 else f'process {rank}'}] {line}", file=sys.stderr, flush=True)
            elif line not in self._said and line != f"envrl: {ranks.OTHERS_ENDED}":  # all may say the same
                self._said.add(line)
                print(line, file=sys.stderr, flush=True)
        if status is not None and status < 0:
            self._why = f"process {rank} on {place.address} was ended by signal {-status}"
        return status

    def _state(self) -> str:
        """Return the cluster in words, some seconds old: "2 nodes, 2 processes, 1 restart"."""
        if time.monotonic() - self._looked > _FRESH:
            self._nodes, self._looked = nodes_alive(self._ray), time.monotonic()
        counts = (
            (self._nodes, "node", ""),
            (self._job.count, "process", "processes"),
            (self._restarts, "restart", ""),
        )
        return ", ".join(some(*count) for count in counts)

    def _get(self, futures: Sequence[Any], seconds: float = GRACE) -> list[Any]:
        """Return what actors answer; raises `_Gone` where one is lost, or silent for so long.

        Raises `UserError` where a node could not make its actor, since it lacks the program.
        """
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(list(futures), timeout=seconds)
        except exceptions.RayActorError as error:
            said = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
            if "creation task" in str(error):
                raise UserError(
                    f"a node of the cluster cannot start a process of the run ({said[-1]}): install this version of "
                    "'envrl[ray]' on every node"
                ) from error
            unavailable = isinstance(error, exceptions.ActorUnavailableError) or not said
            raise _Gone("it does not answer" if unavailable else said[0]) from error
        except exceptions.GetTimeoutError as error:
            raise _Gone(f"it gave no answer for {seconds:g} seconds") from error


def is_over(ends: Ends, count: int, now: float) -> bool:
    """Return whether nothing is to be waited for: all have ended, one is lost or short of memory, or time is up."""
    failed = [end for end in ends.values() if end[1]]
    status = cause(failed) if failed else 0
    late = status not in (0, 130) and now > min(failed)[0] + GRACE
    return len(ends) == count or status < 0 or status == AGAIN or late


def _say(text: str) -> None:
    print(f"envrl: {text}", file=sys.stderr, flush=True)


def _saved(run: Path) -> set[tuple[str, int]]:
    """Return what a run has saved until now: its checkpoints and the warm start's, each with its time."""
    found = set()
    for path in run.glob("*/step-*"):
        with suppress(OSError):
            found.add((path.relative_to(run).as_posix(), path.stat().st_mtime_ns))
    return found
