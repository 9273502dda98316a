"""Episodes in worker processes, for slow worlds; and where a recipe's episodes are played, there or in this process.

A worker that dies, hangs or answers rubbish is killed and replaced, and its episodes are played again from the same
task and seed with the same commands. Worlds are deterministic, so the answers must be the same again, and nothing that
was recorded changes; a world that answers otherwise has failed once more.
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from envrl.envs.answers import opened
from envrl.envs.fork_server import ForkServer
from envrl.envs.process import Lost, WorkerProcess, wait
from envrl.envs.protocol import TextEnv
from envrl.envs.ray_hosts import RayHosts, check_ray_worlds
from envrl.envs.vector import OTHERWISE, Episode, LocalWorlds, Start, VectorEnv, put_aside, same_answer
from envrl.envs.wire import Answer, Call, Failure
from envrl.envs.worker import is_answer
from envrl.errors import RunError, UserError
from envrl.types import Observation, Step

ATTEMPTS = 3
"""Failures of one call in a row after which its task is set aside, or of a worker's start after which none is tried."""


@dataclass(slots=True)
class _Job:
    """A call under way: `known` of its items were answered before, and must be answered so again."""

    call: Call
    known: int
    items: int
    received: int = 0


@dataclass(slots=True)
class _Worker:
    """A place for a worker process, the jobs that it has before it, and how often it failed to begin."""

    process: WorkerProcess | None = None
    jobs: deque[_Job] = field(default_factory=deque)
    false_starts: int = 0


class ProcessPool:
    """Episodes in `workers` processes, each with the slots of one remainder; see `VectorEnv`.

    Every answer is due within `timeout` seconds. `make_env` must be picklable. `place`: "local" (on this machine), or
    "ray" (on the nodes of a cluster). Raises `UserError` where `make_env` is not, where a world does, or where no
    cluster answers, and `RunError` where no worker can begin.
    """

    def __init__(self, make_env: Callable[[], TextEnv], workers: int, timeout: float, place: str = "local") -> None:
        try:
            self._make_env = pickle.dumps(make_env)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"the world cannot be made in worker processes ({error}); define it in a module that they can import, "
                "or set env.workers = 0"
            ) from error
        self._timeout = timeout
        self._source = RayHosts(workers) if place == "ray" else ForkServer()
        self._workers = [_Worker() for _ in range(workers)]
        self._episodes: dict[int, Episode] = {}
        self._calls = 0
        self.replaced = 0
        self.set_aside: dict[str, str] = {}

    def reset(self, starts: Sequence[Start]) -> list[Observation | None]:
        """Start tasks; see `VectorEnv`."""
        for start in starts:
            self._episodes[start.slot] = Episode(start.task, start.seed)
        self._carry_out((start.slot, None) for start in starts)
        answers = [self._last(start.slot) for start in starts]
        return [answer if isinstance(answer, Observation) else None for answer in answers]

    def step(self, commands: Sequence[tuple[int, str]]) -> list[Step | None]:
        """Carry out commands; see `VectorEnv`."""
        self._carry_out(commands)
        answers = [self._last(slot) for slot, _ in commands]
        return [answer if isinstance(answer, Step) else None for answer in answers]

    def finish(self) -> None:
        """Forget the episodes; the workers stay, and a world of theirs is closed with its next task, or with them."""
        self._episodes.clear()

    def pids(self) -> list[int]:
        """Return the process ids of the workers that have been started."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    def processes(self) -> list[int]:
        """Return the process ids of the workers, and of the fork server that they come from."""
        return self.pids() + ([self._source.pid] if self._source.pid is not None else [])

    def close(self) -> None:
        """End the workers; those that are needed again later begin anew."""
        for worker in self._workers:
            worker.jobs.clear()
            self._drop(worker)
        self._source.end()

    def _last(self, slot: int) -> Observation | Step | None:
        episode = self._episodes[slot]
        return None if episode.task.id in self.set_aside else episode.answers[-1]

    def _carry_out(self, commands: Iterable[tuple[int, str | None]]) -> None:
        """Have every command answered, or its task set aside; the answers are appended to the episodes'."""
        try:
            for slot, command in commands:
                if command is not None:
                    self._episodes[slot].commands.append(command)
                if self._episodes[slot].task.id not in self.set_aside:
                    self._worker_of(slot).jobs.append(self._job(slot))
            for worker in self._workers:
                if worker.process is not None and worker.jobs and worker.process.has_ended():
                    self._replace(worker)  # it died between two calls, which is nobody's fault
                self._send(worker, worker.jobs)
            while busy := [worker for worker in self._workers if worker.jobs]:
                self._listen(busy)
        except BaseException:
            self.close()  # answers may be under way that nobody waits for any more
            raise

    def _worker_of(self, slot: int) -> _Worker:
        return self._workers[slot % len(self._workers)]

    def _job(self, slot: int) -> _Job:
        """Return what has to be called so that the episode's last command is answered."""
        episode = self._episodes[slot]
        self._calls += 1
        if episode.lost:
            call = Call(self._calls, slot, episode.task, episode.seed, tuple(episode.commands))
            return _Job(call, len(episode.answers), 1 + len(episode.commands))
        return _Job(Call(self._calls, slot, None, episode.seed, tuple(episode.commands[-1:])), 0, 1)

    def _send(self, worker: _Worker, jobs: Iterable[_Job]) -> None:
        if not jobs:
            return
        if worker.process is None:
            worker.process = WorkerProcess(self._make_env, self._source)
        for job in jobs:
            worker.process.send(job.call)

    def _listen(self, busy: Sequence[_Worker]) -> None:
        """Wait for what comes next from any of the workers that have jobs, and see to it."""
        processes = [worker.process for worker in busy if worker.process is not None]
        ready = wait(processes)
        for worker in busy:
            if worker.process is None:
                continue
            try:
                for message in worker.process.receive() if worker.process in ready else ():
                    self._take(worker, message)
                worker.process.check(self._timeout)
            except Lost as error:
                self._fail(worker, str(error))

    def _take(self, worker: _Worker, message: object) -> None:
        """Take an item of an answer: `Lost` where it is none, or is not what the episode had at that point."""
        job = worker.jobs[0] if worker.jobs else None
        starts = job is not None and job.call.task is not None
        if job is None or not is_answer(message, job.call.number, job.received, starts):
            raise Lost("it answered rubbish")
        assert isinstance(message, Answer)
        value, episode = message.value, self._episodes[job.call.slot]
        if isinstance(value, Failure):
            if value.mistake:
                raise UserError(value.what)
            raise Lost(value.what)
        assert value is not None
        if job.received < job.known:
            if not same_answer(value, episode.answers[job.received]):
                raise Lost(OTHERWISE)
        else:
            episode.answers.append(value)
        job.received += 1
        if job.received == job.items:
            episode.lost, episode.failures, worker.false_starts = False, 0, 0
            worker.jobs.popleft()

    def _fail(self, worker: _Worker, reason: str) -> None:
        """Replace a worker, count the failure of the job that it was at, and have its jobs done by another."""
        assert worker.process is not None
        if not worker.process.begun:
            worker.false_starts += 1
            if worker.false_starts >= ATTEMPTS:
                raise RunError(f"no worker process could begin to play, in {ATTEMPTS} attempts: {reason}")
        elif worker.jobs:
            episode = self._episodes[worker.jobs[0].call.slot]
            episode.failures += 1
            if episode.failures >= ATTEMPTS:
                put_aside(self.set_aside, episode.task, ATTEMPTS, reason)
        self._replace(worker)
        self._send(worker, worker.jobs)

    def _replace(self, worker: _Worker) -> None:
        """End a worker, and make its jobs anew: those of tasks that are set aside are dropped."""
        self._drop(worker)
        self.replaced += 1
        slots = [job.call.slot for job in worker.jobs]
        worker.jobs = deque(self._job(slot) for slot in slots if self._episodes[slot].task.id not in self.set_aside)

    def _drop(self, worker: _Worker) -> None:
        if worker.process is not None:
            worker.process.kill()
            worker.process = None
        for slot, episode in self._episodes.items():
            if self._worker_of(slot) is worker:
                episode.lost = True


class Worlds:
    """How a recipe's world is made: one by calling this, many at once by `vector`."""

    def __init__(
        self, make_env: Callable[[], TextEnv], workers: int = 0, timeout: float = 60.0, place: str = "local"
    ) -> None:
        if place == "ray":
            check_ray_worlds(workers)
        self._make_env, self._wanted, self._timeout, self._place = make_env, workers, timeout, place
        self._here: LocalWorlds | None = None
        self._pool: ProcessPool | None = None

    def __call__(self) -> TextEnv:
        """Return a world in this process."""
        return self._make_env()

    @cached_property
    def workers(self) -> int:
        """The number of worker processes, 0 where none are used; below 0 was asked for: a core each if it is slow."""
        if self._wanted >= 0:
            return self._wanted
        with opened(self._make_env()) as env:
            return _cores() if getattr(env, "slow", False) else 0

    def vector(self) -> VectorEnv:
        """Return a place to play many episodes: this process, or the one pool of worker processes, begun at need."""
        if not self.workers:
            self._here = self._here or LocalWorlds(self._make_env)
            return self._here
        if self._pool is None:
            self._pool = ProcessPool(self._make_env, self.workers, self._timeout, self._place)
        return self._pool


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def vector_of(make_env: Callable[[], TextEnv]) -> VectorEnv:
    """Return a place to play many episodes of the worlds that a function makes."""
    return make_env.vector() if isinstance(make_env, Worlds) else LocalWorlds(make_env)
