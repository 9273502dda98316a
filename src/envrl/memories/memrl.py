"""MemRL: episodes are recalled by similarity, then by a utility that is learned from what they led to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envrl.curriculum import Plan, generator
from envrl.memories.similarity import Texts
from envrl.memory import Experience, Query, Recalled
from envrl.ranges import Fraction, Positive, Rate
from envrl.registry import register

FLAT = 1e-9
"""Values whose standard deviation is at most this are all the same."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An episode: its task, what it did, how it ended, and what it has been worth to those that were told of it."""

    number: int
    task: str
    """The task's id."""
    text: str
    """What is compared: the task's sentence, or the whole first observation."""
    commands: tuple[str, ...]
    success: bool
    score: float
    """The episode's own return."""
    update: int
    """The update that played it."""
    utility: float
    told: int = 0
    """How many episodes were told of it."""


def learned(utility: float, score: float, rate: float) -> float:
    """Return Q + α (r − Q), the utility of an entry after an episode that was told of it had the return r.

    >>> learned(learned(0.5, 1.0, 0.5), 0.0, 0.5)
    0.375
    """
    return utility + rate * (score - utility)


def two_phase(
    similarities_N: NDArray[np.float64],
    utilities_N: NDArray[np.float64],
    *,
    candidates: int,
    threshold: float,
    balance: float,
) -> NDArray[np.int64]:
    """Return the places of the candidates, best first: those that are similar, in the order of a score with Q in it.

    Phase A keeps the `candidates` most similar entries whose similarity is at least `threshold`; of equally similar
    ones the more useful, then the later. Phase B sorts these by (1 − λ) ẑ(similarity) + λ ẑ(Q), λ = `balance`, where
    ẑ(x) = (x − mean) / standard deviation over the candidates, 0 if all are the same. Source: MemRL, arXiv 2601.03192.

    >>> similar, useful = np.array([0.9, 0.8, 0.6, 0.3]), np.array([0.1, 0.9, 0.5, 1.0])
    >>> two_phase(similar, useful, candidates=3, threshold=0.5, balance=0.5)
    array([1, 0, 2])
    """
    near = np.flatnonzero(similarities_N >= threshold)
    near = near[np.lexsort((-near, -utilities_N[near], -similarities_N[near]))][:candidates]
    scores = (1.0 - balance) * _standardized(similarities_N[near]) + balance * _standardized(utilities_N[near])
    return near[np.argsort(-scores, kind="stable")]


def _standardized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = float(values.std()) if len(values) else 0.0
    return (values - values.mean()) / spread if spread > FLAT else np.zeros(len(values))


@register("memory", "memrl")
class MemRL:
    """Tell an episode of earlier ones that were alike and have proved useful (MemRL, arXiv 2601.03192).

    Of each task of an update the best episode is kept: the one with the highest return, of these the shortest. An
    episode that did the same in an equal task is not kept again. What an entry is worth is learned from the returns of
    the episodes that were told of it: Q ← Q + α (r − Q). A full memory loses the least useful entry, of these the
    oldest.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        candidates: Positive = 10,  # entries that the first phase finds by similarity, at most
        threshold: Fraction = 0.5,  # similarity that they need, 0 to 1
        told: Positive = 2,  # of these, entries that an episode is told of, at most
        balance: Fraction = 0.5,  # λ: weight of the utility beside the similarity in the second phase
        learning_rate: Rate = 0.3,  # α, of the utility
        initial: float = 0.5,  # utility of a new entry
        explore: Fraction = 0.1,  # chance that an episode of training is told of candidates drawn at random
        size: Positive = 1000,  # entries that are kept
        failures: bool = True,  # keep episodes that failed, too
        same_task: bool = True,  # tell of entries of the very same task, too
        commands: Positive = 40,  # commands of an entry that are told, the first ones
        placebo: bool = False,  # tell of as many entries, drawn at random from all
    ) -> None:
        self._candidates, self._threshold, self._told, self._balance = candidates, threshold, told, balance
        self._rate, self._initial, self._explore, self._size = learning_rate, initial, explore, size
        self._failures, self._same_task, self._commands, self._placebo = failures, same_task, commands, placebo
        self._hold([])

    def recall(self, query: Query) -> list[Recalled]:
        """Return the entries that the two phases find; with `explore`, or as a placebo, ones drawn at random."""
        similarities_N = self._similarities(query.text)
        if not self._same_task:
            others = np.array([entry.task != query.task.id for entry in self._entries], dtype=bool)
            similarities_N = np.where(others, similarities_N, -1.0)
        found = two_phase(
            similarities_N,
            self._utilities_N,
            candidates=self._candidates,
            threshold=self._threshold,
            balance=self._balance,
        )
        count, dice = min(self._told, len(found)), generator(query.key)
        if self._placebo:
            found = dice.permutation(len(self._entries))
        elif query.learning and dice.random() < self._explore:
            found = dice.permutation(found)
        chosen = [self._entries[place] for place in found[:count].tolist()]
        return [Recalled(entry.number, written(entry, self._commands)) for entry in chosen]

    def observe(self, experiences: Sequence[Experience], update: int) -> None:
        """Learn what the told entries were worth, in the order of the episodes; then keep the best of each task."""
        entries = {entry.number: entry for entry in self._entries}
        for each in experiences:
            for entry in (entries[number] for number in each.told if isinstance(number, int)):
                utility = learned(entry.utility, each.score, self._rate)
                entries[entry.number] = replace(entry, utility=utility, told=entry.told + 1)
        known = {_done(entry.text, entry.commands) for entry in entries.values()}
        number = max(entries, default=0)
        for each in _best(experiences):
            commands = tuple(step.action.text for step in each.trajectory.transitions)
            won = each.trajectory.success
            if (won or self._failures) and _done(each.text, commands) not in known:
                number += 1
                task = each.trajectory.task.id
                entries[number] = Entry(number, task, each.text, commands, won, each.score, update, self._initial)
                known.add(_done(each.text, commands))
        kept = sorted(entries.values(), key=lambda entry: (entry.utility, entry.number))[-self._size :]
        self._hold(sorted(kept, key=lambda entry: entry.number))

    def figures(self) -> dict[str, float]:
        """Return the number of entries, their mean utility, and the shares that were told of and that were won."""
        entries, count = self._entries, max(1, len(self._entries))
        return {
            "entries": len(entries),
            "utility": float(self._utilities_N.sum()) / count,
            "used": sum(entry.told > 0 for entry in entries) / count,
            "won": sum(entry.success for entry in entries) / count,
        }

    def state(self) -> list[dict[str, Any]]:
        return [asdict(entry) | {"commands": list(entry.commands)} for entry in self._entries]

    def load(self, state: Sequence[Mapping[str, Any]]) -> None:
        self._hold([Entry(**{**entry, "commands": tuple(entry["commands"])}) for entry in state])

    def _hold(self, entries: Sequence[Entry]) -> None:
        self._entries = list(entries)
        self._utilities_N = np.array([entry.utility for entry in entries], dtype=np.float64)
        # Members of a group ask the same.
        self._similarities = lru_cache(maxsize=1024)(Texts([entry.text for entry in entries]).similarities)


def written(entry: Entry, most: int) -> str:
    """Return what an episode is told of an entry: the task, how it ended, and its first commands, one a line."""
    how = "It succeeded by:" if entry.success else "It failed by:"
    return "\n".join([f"An earlier attempt at: {entry.text}", how, *entry.commands[:most]])


def _done(text: str, commands: tuple[str, ...]) -> tuple[str, ...]:
    return (text, *commands)


def _best(experiences: Sequence[Experience]) -> list[Experience]:
    """Return of each task the episode with the highest return, of these the shortest, of these the first."""
    best: dict[str, Experience] = {}
    for each in experiences:
        known = best.setdefault(each.trajectory.task.id, each)
        if _merit(each) > _merit(known):
            best[each.trajectory.task.id] = each
    return list(best.values())


def _merit(experience: Experience) -> tuple[float, int]:
    return experience.score, -len(experience.trajectory.transitions)
