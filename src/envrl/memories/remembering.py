"""The recipe's memory: what of it an episode is told when it begins, and what it learns from those that were played."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import Any, NamedTuple

from envrl.component import Component, plan_of
from envrl.config.schema import Config
from envrl.errors import UserError
from envrl.memories.file import FORMAT, read_memory
from envrl.memories.other_run import begin
from envrl.memory import Experience, Query, Recalled
from envrl.randomness import key_of
from envrl.registry import find
from envrl.rendering.formats import task_text
from envrl.rendering.renderer import PromptWriter, SegmentState
from envrl.types import Observation, Task, Trajectory, TrajectoryGroup, episodes_of


class Asked(NamedTuple):
    """For whom a memory is asked: the random seed and the update, and whether it learns from what comes of it."""

    seed: int
    update: int
    learning: bool = True


class Remembering(Component):
    """The recipe's memory, with checks of what it recalls.

    What an episode is told is a function of the memory's entries, the episode's first observation, and (seed, update,
    task, member): so it is known again from the episode alone, in every process.
    """

    def __init__(self, config: Config) -> None:
        self._config, entry = config, find("memory", config.memory.name)
        super().__init__(entry, lambda: entry.target(plan_of(config), **config.settings("memory")))
        self.is_there = config.memory.name != "none"
        if self.is_there and not hasattr(self.made, "state"):
            raise UserError(f"the {entry.called} has no state() and load(state): what it keeps would be lost")

    def begin(self) -> None:
        """Take over the entries of the run `memory.start`; raise `UserError` if this run cannot use them."""
        if self._config.memory.start:
            begin(self._config, self.load)

    def read(self, folder: Path) -> None:
        """Take over the entries in a checkpoint's folder, if it has some."""
        state = read_memory(folder)
        if state is not None:
            self.load(state)

    def state(self) -> Any:
        """Return what the memory is and its entries, None for a run without one; raise `UserError` for no list."""
        entries = super().state()
        if entries is None:
            return None
        if not isinstance(entries, list):
            raise UserError(f"the {self.entry.called} has a state that is no list of entries")
        return {"format": FORMAT, "memory": self.entry.name, "env": self._config.env.name, "entries": entries}

    def load(self, state: Any) -> None:
        """Restore what `state` returned."""
        if state is not None:
            super().load(state["entries"])

    def teller(self, renderer: PromptWriter, asked: Asked) -> Callable[[Task, int, Observation], str]:
        """Return the function that says what an episode is told beside its first observation, "" for nothing."""
        return lambda task, member, first: _text(self._told(renderer, asked, task, member, first))

    def observe(self, renderer: PromptWriter, groups: Sequence[TrajectoryGroup], asked: Asked) -> dict[str, float]:
        """Learn from the episodes of an update; return figures of them and of the memory."""
        if not self.is_there:
            return {}
        played = [each for each in episodes_of(groups) if each.transitions]
        experiences = [self._experience(renderer, each, asked) for each in played]
        self.do(lambda: self.made.observe(experiences, asked.update))
        return told_figures(played) | self.figures()

    def _experience(self, renderer: PromptWriter, episode: Trajectory, asked: Asked) -> Experience:
        """Return an episode with the entries that it was told of; raise `UserError` if these are others now."""
        first = episode.transitions[0].observation
        bare = replace(first, help="")
        recalled = self._told(renderer, asked, episode.task, episode.member, bare)
        if _text(recalled) != first.help:
            raise UserError(
                f"the {self.entry.called} recalled something else when it was asked the same again: let what it draws "
                "depend on query.key, and change nothing in recall(query)"
            )
        score = episode.total_reward / self._config.rollout.reward_scale
        return Experience(episode, task_text(bare), tuple(each.entry for each in recalled), score)

    def _told(
        self, renderer: PromptWriter, asked: Asked, task: Task, member: int, first: Observation
    ) -> list[Recalled]:
        """Return the entries that an episode is told of: of those recalled the first ones, as many as have room."""
        if not self.is_there or (asked.learning and not _takes_part(member, self._config.memory.share)):
            return []
        key = key_of("memory", asked.seed, asked.update, task.id, member)
        recalled = self.do(lambda: list(self.made.recall(Query(task, task_text(first), first, key, asked.learning))))
        for each in recalled:
            if not isinstance(each, Recalled) or not isinstance(each.text, str) or not each.text.strip():
                raise UserError(f"the {self.entry.called} must recall envrl.Recalled with a text, not {each!r:.60}")
        while recalled and not self._has_room(renderer, first, _text(recalled)):
            recalled.pop()
        return recalled

    def _has_room(self, renderer: PromptWriter, first: Observation, text: str) -> bool:
        """Return whether a text is within `memory.tokens`, and the episode can begin with it."""
        room = self._config.rollout.response_tokens
        told = renderer.prompt((), replace(first, help=text), SegmentState(), room)
        bare = renderer.prompt((), first, SegmentState(), room)
        return told is not None and bare is not None and len(told.ids) - len(bare.ids) <= self._config.memory.tokens


def told_figures(played: Sequence[Trajectory]) -> dict[str, float]:
    """Return the share of episodes that were told something, and the success of those and of the others."""
    parts: dict[bool, list[bool]] = {True: [], False: []}
    for each in (each for each in played if each.transitions):
        parts[bool(each.transitions[0].observation.help)].append(each.success)
    told, others = parts[True], parts[False]
    figures = {"memory/told": len(told) / max(1, len(told) + len(others))}
    if told:
        figures["memory/told_success"] = sum(told) / len(told)
    if others:
        figures["memory/untold_success"] = sum(others) / len(others)
    return figures


def _text(recalled: Sequence[Recalled]) -> str:
    return "\n\n".join(each.text for each in recalled)


def _takes_part(member: int, share: float) -> bool:
    """Return whether a member of a group is of the share that is told something, which is spread evenly over it."""
    return floor((member + 1) * share) > floor(member * share)
