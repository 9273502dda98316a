"""Which transitions of an update an auxiliary objective learns from, and examples kept from earlier updates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from envrl.randomness import key_of
from envrl.types import Example, InPass, Pair, Trajectory, TrajectoryGroup, Transition, episodes_of

MOST_REMEMBERED = 500_000
"""Transitions of which it is known how often they were met; beyond it those met first are forgotten."""
Yielded = Example | InPass
Place = tuple[int, int]
"""A transition: the identity of its episode, and its step."""


@dataclass(slots=True)
class Reservoir:
    """A uniform sample of all examples that it was offered, each with its update (Vitter's algorithm R)."""

    size: int
    kept: list[tuple[Pair, int]] = field(default_factory=list)
    offered: int = 0

    def offer(self, pairs: Iterable[Pair], update: int, key: int) -> None:
        """Take each example with a chance of `size` over the number offered so far, in the place of a random one."""
        generator = np.random.Generator(np.random.PCG64(key))
        for pair in pairs:
            self.offered += 1
            place = int(generator.integers(self.offered))
            if len(self.kept) < self.size:
                self.kept.append((pair, update))
            elif place < self.size:
                self.kept[place] = (pair, update)

    def draw(self, count: int, key: int) -> list[tuple[Pair, int]]:
        """Return so many of the examples, or all if there are fewer, in the order of their places."""
        chosen = np.random.Generator(np.random.PCG64(key)).permutation(len(self.kept))[:count]
        return [self.kept[place] for place in sorted(chosen.tolist())]

    def state(self) -> dict[str, Any]:
        kept = [[list(pair.prompt), list(pair.target), pair.weight, update] for pair, update in self.kept]
        return {"offered": self.offered, "kept": kept}

    def load(self, state: Mapping[str, Any]) -> None:
        self.offered = state["offered"]
        self.kept = [(Pair(tuple(p), tuple(t), weight), update) for p, t, weight, update in state["kept"]]


@dataclass(slots=True)
class Memory:
    """What selection knows of earlier updates; part of a checkpoint."""

    met: dict[int, int] = field(default_factory=dict)
    """How often each transition was met in earlier updates."""
    reservoirs: dict[str, Reservoir] = field(default_factory=dict)

    def reservoir(self, name: str, size: int) -> Reservoir:
        """Return the reservoir of an objective."""
        return self.reservoirs.setdefault(name, Reservoir(size))

    def observe(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Count the transitions of an update."""
        for trajectory in episodes_of(groups):
            for transition in trajectory.transitions:
                key = transition_key(transition)
                self.met[key] = self.met.pop(key, 0) + 1  # those met last stand last
        for key in list(self.met)[: max(0, len(self.met) - MOST_REMEMBERED)]:
            del self.met[key]

    def state(self) -> dict[str, Any]:
        """Return it as JSON."""
        stored = {name: {"size": each.size, **each.state()} for name, each in self.reservoirs.items()}
        return {"met": [[key, count] for key, count in self.met.items()], "reservoirs": stored}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Restore it from a checkpoint; None: a run of an older version has none."""
        for key, count in (state or {}).get("met", ()):
            self.met[key] = count
        for name, stored in (state or {}).get("reservoirs", {}).items():
            self.reservoir(name, stored["size"]).load(stored)


def transition_key(transition: Transition) -> int:
    """Return a 64-bit hash of what was seen, done and answered; the task is not part of it."""
    return key_of(transition.observation.text, transition.action.text, transition.next_observation.text)


def surprisal(transition: Transition) -> float:
    """Return the mean of −log p over an action's tokens that were drawn: one sample of the action's entropy, in nats.

    It is rounded to thousandths: what two batches compute of the same token differs by less. A command that the policy
    did not draw has −∞.
    """
    action = transition.action
    drawn = [lp for lp, ids in zip(action.logprobs, action.allowed, strict=True) if ids is None or len(ids) > 1]
    if drawn:
        return round(-float(np.mean(drawn)), 3)
    return 0.0 if action.logprobs else -np.inf


def failures(yielded: Sequence[Yielded]) -> list[Yielded]:
    """Return what is about episodes that were lost."""
    return [each for each in yielded if not each.trajectory.success]


def uncertain(yielded: Sequence[Yielded], fraction: float, key: int) -> list[Yielded]:
    """Return the share of the transitions whose commands the policy was least sure of (PaW, arXiv 2606.02388)."""
    return _first(yielded, fraction, key, lambda trajectory, step: -surprisal(trajectory.transitions[step]))


def novel(yielded: Sequence[Yielded], fraction: float, key: int, met: Mapping[int, int]) -> list[Yielded]:
    """Return the share of the transitions that were met least often, in earlier updates and before in this one."""
    again = Counter(met)
    rank: dict[Place, int] = {}
    for each in yielded:
        place = (id(each.trajectory), each.step)
        if place not in rank:
            known = transition_key(each.trajectory.transitions[each.step])
            rank[place] = again[known]
            again[known] += 1
    return _first(yielded, fraction, key, lambda trajectory, step: rank[id(trajectory), step])


def _first(
    yielded: Sequence[Yielded], fraction: float, key: int, rank: Callable[[Trajectory, int], float]
) -> list[Yielded]:
    """Return what is about the share of the transitions with the lowest ranks, equal ones in random order."""
    places = {(id(each.trajectory), each.step): rank(each.trajectory, each.step) for each in yielded}
    ranks = np.array(list(places.values()))
    order = np.lexsort((np.random.Generator(np.random.PCG64(key)).random(len(ranks)), ranks))
    all_places = list(places)
    chosen = {all_places[number] for number in order[: round(fraction * len(order))]}
    return [each for each in yielded if (id(each.trajectory), each.step) in chosen]
