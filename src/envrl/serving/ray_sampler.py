"""The sampler `ray`: engines on the nodes of a Ray cluster play, each on a device of its own.

An actor holds a copy of the model and the built-in sampler. An episode stays with its actor, whose cache holds its
turns. Where an actor or its node is lost another one takes its place: what was asked is asked again, and as a sample
depends on its key alone, the answers are the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from envrl.errors import RunError, UserError
from envrl.models.copies import sampling_copy
from envrl.models.load import LanguageModel
from envrl.models.out_of_memory import is_out_of_memory
from envrl.models.runtime import prepare_torch
from envrl.rollout.own_sampler import OwnSampler
from envrl.rollout.sampler import Request
from envrl.serving.cluster import cluster_for
from envrl.types import Completion

LOSSES = 3
"""Actors lost in a row, none of which answered, after which the run has failed."""
_SLICE = 1.0  # seconds between two looks at an actor for which there is no room yet


class SamplerHost:
    """Plays on the device that Ray has given this actor."""

    def __init__(self, model: LanguageModel, precision: str, threads: int) -> None:
        prepare_torch(threads)
        ray: Any = import_module("ray")
        device = torch.device("cuda" if ray.get_runtime_context().get_accelerator_ids().get("GPU") else "cpu")
        for part in (model.network, model.heads):
            nn.Module.to(part, device)
        self._sampler = OwnSampler(model, precision)

    def begin(self) -> int:
        """Return this process's number, once the actor is there."""
        return os.getpid()

    def load(self, weights: dict[str, Tensor], version: int) -> None:
        """Sample with the weights of a policy version from now on."""
        self._sampler.load(weights.items(), version)

    def release(self, episode: int) -> None:
        """Forget an episode."""
        self._sampler.release(episode)

    def play(self, requests: Iterable[Request], enough: int | None) -> dict[int, Completion | None]:
        """Take requests, and return at least `enough` responses; see `Sampler.poll`."""
        for request in requests:
            self._sampler.submit(request)
        return self._sampler.poll(enough)


@dataclass(slots=True)
class _Engine:
    """An actor, its episodes, and what is asked of it: `new` is yet to be sent. Calls reach it in their order."""

    actor: Any
    began: Any
    loaded: Any
    """The call that gave it its weights."""
    due: float
    """Until when it has to be placed."""
    episodes: set[int] = field(default_factory=set)
    new: dict[int, Request] = field(default_factory=dict)
    sent: dict[int, Request] = field(default_factory=dict)
    call: Any = None
    losses: int = 0

    @property
    def pending(self) -> int:
        return len(self.new) + len(self.sent)


class RaySampler:
    """Shares out episodes over actors; see `Sampler`.

    Raises `UserError` where no cluster answers or it is too small, `RunError` where actors are lost again and again, or
    find no room within `patience` seconds.
    """

    def __init__(self, model: LanguageModel, precision: str, actors: int, cpus: int, patience: float) -> None:
        self._ray = cluster_for(model.device.type, actors, cpus)
        self._precision, self._cpus, self._patience = precision, cpus, patience
        self._gpus = int(model.device.type == "cuda")
        made = sampling_copy(model, precision, apart=True)
        for part in (made.network, made.heads):
            nn.Module.to(part, "cpu")
        self._dtype = torch.bfloat16 if precision == "bf16" else None
        self._model, self._weights = self._ray.put(made), None
        self.version = 0
        self._engines = [_Engine(*self._begin()) for _ in range(actors)]
        self._home: dict[int, _Engine] = {}

    def submit(self, request: Request) -> None:
        engine = self._home.get(request.episode)
        if engine is None:  # the first of those with the fewest episodes
            engine = self._home[request.episode] = min(self._engines, key=lambda each: len(each.episodes))
            engine.episodes.add(request.episode)
        engine.new[request.episode] = request

    def release(self, episode: int) -> None:
        if (engine := self._home.pop(episode, None)) is not None:
            engine.episodes.discard(episode)
            engine.new.pop(episode, None)
            engine.sent.pop(episode, None)
            engine.actor.release.remote(episode)

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Put the weights into the cluster's memory once, from where all actors take them."""
        self.version = version
        with torch.no_grad():
            taken = {name: weight.detach().to("cpu", self._dtype or weight.dtype) for name, weight in weights}
        self._weights = self._ray.put(taken)
        for engine in self._engines:
            engine.loaded = engine.actor.load.remote(self._weights, version)

    def poll(self, enough: int | None = None) -> dict[int, Completion | None]:
        """See `Sampler`. Each actor gives its share, whichever is faster: what is batched does not depend on time."""
        owing = [engine for engine in self._engines if engine.pending]
        pending = sum(engine.pending for engine in owing)
        done: dict[int, Completion | None] = {}
        while owing:
            for engine in owing:
                self._send(engine, None if enough is None else -(-min(enough, pending) * engine.pending // pending))
            ready, _ = self._ray.wait([engine.call for engine in owing], timeout=_SLICE)
            for engine in [each for each in owing if each.call in ready]:
                if found := self._taken(engine):
                    owing.remove(engine)
                    done |= found
            if not ready:
                self._check_placed()
        return done

    def _send(self, engine: _Engine, enough: int | None) -> None:
        """Ask an actor that has nothing to do for its episodes' responses, at least `enough`."""
        if engine.call is None and engine.pending:
            engine.call = engine.actor.play.remote(list(engine.new.values()), enough)
            engine.sent, engine.new = engine.sent | engine.new, {}

    def _taken(self, engine: _Engine) -> dict[int, Completion | None]:
        """Return what an actor answers, but for episodes released meanwhile; replace the actor if it is lost."""
        exceptions, loaded = self._ray.exceptions, False
        call, engine.call = engine.call, None
        try:
            self._ray.get(engine.loaded)  # else what was drawn may be the old weights'
            loaded = True
            found = self._ray.get(call)
        except exceptions.RayTaskError as error:
            why = _last_line(str(error))
            if loaded and is_out_of_memory(error.cause or error):
                raise MemoryError(why) from error  # fewer episodes at a time are tried
            what = "failed" if loaded else "did not take the new weights"
            raise RunError(f"a sampler on the Ray cluster {what} ({why}); go on with --resume") from error
        except exceptions.RayError as error:  # the actor or its node is gone, or with it what it answered
            self._replace(engine, str(error))
            return {}
        engine.losses = 0
        return {episode: found[episode] for episode in found if engine.sent.pop(episode, None)}

    def _replace(self, engine: _Engine, why: str) -> None:
        """Have a new actor take the place of a lost one, and be asked what that was asked."""
        engine.losses += 1
        if "creation task" in why:  # what making it raises, so another would, too
            remedy = "install this version of 'envrl[ray]' on every node"
            if "out of memory" in why.lower():
                remedy = "a copy of the model does not fit on its device; try rollout.precision = 'bf16'"
            raise UserError(f"a node of the Ray cluster cannot start a sampler ({_last_line(why)}): {remedy}")
        if engine.losses == LOSSES:
            raise RunError(
                f"a sampler on the Ray cluster was lost, the {LOSSES}rd time before it answered ({_last_line(why)}); "
                "go on with --resume"
            )
        self._ray.kill(engine.actor)  # it may only be out of reach, and hold the room that another one needs
        engine.actor, engine.began, engine.loaded, engine.due = self._begin()
        engine.new, engine.sent = engine.sent | engine.new, {}

    def _begin(self) -> tuple[Any, Any, Any, float]:
        """Ask for an actor; return it, the calls that say that it is there and has the weights, and its deadline."""
        options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "scheduling_strategy": "SPREAD"}
        made = self._ray.remote(SamplerHost).options(**options)
        actor = made.remote(self._model, self._precision, self._cpus)
        began = loaded = actor.begin.remote()
        if self._weights is not None:
            loaded = actor.load.remote(self._weights, self.version)
        return actor, began, loaded, time.monotonic() + self._patience

    def _check_placed(self) -> None:
        """Raise `RunError` where an actor has found no room in time."""
        for engine in self._engines:
            if engine.call is not None and time.monotonic() > engine.due:
                if not self._ray.wait([engine.began], timeout=0)[0]:
                    raise RunError(
                        f"a sampler found no room on the Ray cluster in {self._patience:g} s: go on with --resume once "
                        "there is, or raise rollout.ray.patience"
                    )
                engine.due = float("inf")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it gave no reason"])[-1].strip().rstrip(".")[:300]
