"""Play an update when it is due, or ahead (`rollout.ahead`): in a thread, while another one is learned from.

Played ahead, update n has the weights at the start of update n - ahead, whatever the speed of either side, so a run
does not depend on timing, and resumes bit for bit. An update is played to its last episode before the next one begins:
none is dropped or cut because it is long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from envrl import ranks
from envrl.config.schema import Config
from envrl.engine.protocol import Engine
from envrl.errors import Interrupted
from envrl.models.runtime import waiting
from envrl.progress import Reporter
from envrl.rollout.scheduler import RolloutStats
from envrl.samples.store import from_json, to_json
from envrl.trainer.record import Laps
from envrl.trainer.rollouts import Played, Rollouts


@dataclass(slots=True)
class Snapshot:
    """A copy of the weights in a sampler's precision, taken by `Engine.publish`."""

    dtype: torch.dtype | None
    version: int = 0
    weights: list[tuple[str, Tensor]] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return self.weights[0][1].device

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy the weights of a policy version."""
        self.version = version
        self.weights = [(name, weight.detach().to(self.dtype or weight.dtype, copy=True)) for name, weight in weights]


@dataclass(frozen=True, slots=True)
class PlayedAhead:
    """The episodes of an update, what befell in play, and how many seconds it took."""

    played: Played
    stats: RolloutStats
    seconds: float = 0.0


class PlayNow:
    """Plays each update when it is due, with the weights at its start."""

    def __init__(self, rollouts: Rollouts, engine: Engine) -> None:
        self._rollouts, self._engine = rollouts, engine
        self._update, self._before = 0, rollouts.tasks.state()

    def play(self, update: int, laps: Laps) -> Played:
        """Return the episodes of an update, the one after that of the last call."""
        self._update, self._before = update, self._rollouts.tasks.state()
        self._engine.publish(self._rollouts.policy.sampler, update)
        return self._rollouts.play(update, laps.stats)

    def state(self, update: int) -> dict[str, Any]:
        """Return the state after an update that is done, as plain JSON; of a later one that was begun no trace."""
        return {"curriculum": self._before if update < self._update else self._rollouts.tasks.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self._rollouts.tasks.load(state["curriculum"])

    def close(self) -> None:
        """Nothing is under way between two calls."""


class PlayAhead:
    """Plays `rollout.ahead` updates ahead, one after the other, with a policy that shares no weights with the trainer.

    Its methods are those of `PlayNow`. `stop` is called while the trainer waits, and may raise. `rollouts` and what it
    plays with belong to the thread until `state` has returned.
    """

    def __init__(
        self, config: Config, rollouts: Rollouts, engine: Engine, stop: Callable[[], None], reporter: Reporter
    ) -> None:
        self._quiet = Reporter(silent=True)
        self._rollouts = replace(rollouts, poll=self._poll, reporter=self._quiet)
        self._engine, self._stop, self._reporter = engine, stop, reporter
        self._ahead, self._last = config.rollout.ahead, config.train.updates
        self._dtype = torch.bfloat16 if config.rollout.precision == "bf16" else None
        self._under_way: dict[int, Future[PlayedAhead]] = {}
        self._closed = False
        # Two sides with all threads each would wait for one another: they share them out.
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads - threads // 2))
        join = ranks.channel()

        def begin() -> None:
            torch.set_num_threads(max(1, threads // 2))
            join()

        self._thread = ThreadPoolExecutor(1, "play", initializer=begin)

    def play(self, update: int, laps: Laps) -> Played:
        """Return the episodes of an update, and begin to play the one that is `ahead` of it, if the run has it."""
        self._begin(update, update)
        found = self._wait(update, self._stop)
        laps.stats.mismatches += found.stats.mismatches
        laps.stats.replaced += found.stats.replaced
        laps.add("ahead", found.seconds)
        self._begin(update, min(update + self._ahead, self._last))
        return found.played

    def state(self, update: int) -> dict[str, Any]:
        """Return what is played ahead, and the curriculum's state.

        It waits until all that has begun is played, since the weights that play it are not saved.
        """
        what = "playing to its end what is saved with the run"
        ahead = {n: self._wait(n, lambda: None, what) for n in self._under_way if n > update}
        return {
            "curriculum": self._rollouts.tasks.state(),
            "ahead": [_to_json(number, found) for number, found in sorted(ahead.items())],
        }

    def load(self, state: dict[str, Any]) -> None:
        self._rollouts.tasks.load(state["curriculum"])
        for each in state["ahead"]:
            self._under_way[each["update"]] = future = Future()
            future.set_result(_from_json(each))

    def close(self) -> None:
        """End the thread at the next turn of its episodes."""
        self._closed = True
        self._thread.shutdown(cancel_futures=True)

    def _begin(self, update: int, until: int) -> None:
        """Ask for all updates until `until` that nobody asked for, with the weights at the start of `update`."""
        self._under_way = {number: future for number, future in self._under_way.items() if number >= update}
        for number in range(update, until + 1):
            if number not in self._under_way:
                snapshot = Snapshot(self._dtype)
                self._engine.publish(snapshot, update)
                waiting(snapshot.device)()
                self._under_way[number] = self._thread.submit(self._play, number, snapshot)

    def _play(self, update: int, snapshot: Snapshot) -> PlayedAhead:
        """Play an update with the weights of a snapshot; on a GPU beside the trainer's stream, not behind it."""
        began, stats, device = time.perf_counter(), RolloutStats(), snapshot.device
        with torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext():
            self._rollouts.policy.sampler.load(snapshot.weights, snapshot.version)
            snapshot.weights.clear()
            played = self._rollouts.play(update, stats, snapshot.version)
        return PlayedAhead(played, stats, time.perf_counter() - began)

    def _wait(self, update: int, stop: Callable[[], None], what: str = "playing") -> PlayedAhead:
        future = self._under_way[update]
        with self._reporter.phase(what, unit="episodes") as phase:
            while not wait([future], timeout=0.2).done:
                stop()
                if (inner := self._quiet.innermost) is not None:
                    phase.show(inner.done, total=inner.total)
        return future.result()

    def _poll(self) -> None:
        if self._closed:
            raise Interrupted("the run has ended")


def _to_json(update: int, found: PlayedAhead) -> dict[str, Any]:
    played, stats = found.played, found.stats
    places = {id(group): place for place, group in enumerate(played.groups)}
    return {
        "update": update,
        "groups": to_json(played.groups),
        "admitted": [places[id(group)] for group in played.admitted],
        "episodes": played.episodes,
        "figures": played.figures,
        "mismatches": stats.mismatches,
        "replaced": stats.replaced,
    }


def _from_json(state: dict[str, Any]) -> PlayedAhead:
    groups = from_json(state["groups"])
    admitted = [groups[place] for place in state["admitted"]]
    played = Played(groups, admitted, state["episodes"], state["figures"])
    return PlayedAhead(played, RolloutStats(mismatches=state["mismatches"], replaced=state["replaced"]))
