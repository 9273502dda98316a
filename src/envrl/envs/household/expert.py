"""A scripted player of household games that goes by what it has seen: the texts, the task's sentence, and a prior.

It never looks into the game that it plays. It gives the demonstrations, and a ceiling to compare policies with.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from envrl.envs.household.catalogue import OPENABLE, TREATMENTS
from envrl.envs.household.draws import Draws
from envrl.envs.household.problem import Goal, Problem
from envrl.types import Observation

Prior = Mapping[str, Mapping[str, float]]
"""Object type → receptacle type → probability that such a receptacle holds at least one such object."""

_UNHEARD_OF = 0.01

_SENTENCES = tuple(
    (kind, re.compile(rf"Your task is to: {pattern}\."))
    for kind, pattern in (
        ("pick_clean_then_place_in_recep", r"clean some (\w+) and put it in (\w+)"),
        ("pick_clean_then_place_in_recep", r"put a clean (\w+) in (\w+)"),
        ("pick_heat_then_place_in_recep", r"heat some (\w+) and put it in (\w+)"),
        ("pick_heat_then_place_in_recep", r"put a hot (\w+) in (\w+)"),
        ("pick_cool_then_place_in_recep", r"cool some (\w+) and put it in (\w+)"),
        ("pick_cool_then_place_in_recep", r"put a cool (\w+) in (\w+)"),
        ("pick_two_obj_and_place", r"put two (\w+) in (\w+)"),
        ("pick_two_obj_and_place", r"find two (\w+) and put them in (\w+)"),
        ("look_at_obj_in_light", r"look at (\w+) under the (\w+)"),
        ("look_at_obj_in_light", r"examine the (\w+) with the (\w+)"),
        ("pick_and_place_simple", r"put some (\w+) on (\w+)"),
        ("pick_and_place_simple", r"put a (\w+) in (\w+)"),
    )
)
_ROOM = re.compile(r"Looking quickly around you, you see (.*)\.")
_THING = re.compile(r"\ba (\w+ \d+)")
_CONTENTS = re.compile(r"(?:On the (\w+ \d+)|The (\w+ \d+) is open\. In it), you see (.*)\.$")
_CLOSED = re.compile(r"The (\w+ \d+) is closed\.$")
_ARRIVED = re.compile(r"You arrive at (\w+ \d+)\.")
_TOOK = re.compile(r"You pick up the (\w+ \d+) from the (\w+ \d+)\.$")
_MOVED = re.compile(r"You move the (\w+ \d+) to the (\w+ \d+)\.$")
_CLOSE = re.compile(r"You close the (\w+ \d+)\.$")
_TREATED = re.compile(r"You (clean|heat|cool) the \w+ \d+ using the \w+ \d+\.$")
_NOTHING = "Nothing happens."
_EXAMINE = re.compile(r"examine (\w+ \d+)$")


def read_goal(text: str) -> Goal:
    """Return the goal that a first observation states; raises `ValueError` where it states none that is known."""
    for kind, pattern in _SENTENCES:
        if match := pattern.search(text):
            return Goal(kind, match[1], match[2])
    raise ValueError(f"no household task is stated in {text!r}")


@dataclass(frozen=True, slots=True)
class Expert:
    """The player; `start` gives it a fresh memory."""

    prior: Prior

    def start(self, seed: int | None = None) -> ExpertEpisode:
        """Return the player of one episode; equally good choices go to the lowest number, or at random where seeded."""
        return ExpertEpisode(self.prior, seed)


def placement_prior(problems: Iterable[Problem]) -> dict[str, dict[str, float]]:
    """Return how often a receptacle of a type holds objects of a type, over the games that have such objects.

    P(receptacle type | object type) = receptacles of the type with at least one such object / receptacles of the type.
    Lamps count as objects.
    """
    filled: dict[str, Counter[str]] = defaultdict(Counter)
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for problem in problems:
        types = {receptacle.id: receptacle.type for receptacle in problem.receptacles}
        kinds = {item.id: item.type for item in problem.items}
        totals = Counter(types.values())
        lies = {(kinds[item], receptacle) for item, receptacle in problem.in_receptacle}
        for kind in {kind for kind, _ in lies}:
            seen[kind].update(totals)
        for kind, receptacle in lies:
            filled[kind][types[receptacle]] += 1
    return {
        kind: {name: count / seen[kind][name] for name, count in sorted(filled[kind].items())}
        for kind in sorted(filled)
    }


def _type(name: str) -> str:
    return name.partition(" ")[0]


@dataclass(slots=True)
class ExpertEpisode:
    """What the player knows in one episode."""

    prior: Prior
    seed: int | None
    goal: Goal = field(default_factory=lambda: Goal("", "", ""))
    receptacles: tuple[str, ...] = ()
    contents: dict[str, list[str]] = field(default_factory=dict)
    """Of the receptacles that have been looked into."""
    closed: set[str] = field(default_factory=set)
    """Receptacles that are known to be closed now."""
    here: frozenset[str] = frozenset()
    """Receptacles at hand."""
    held: str | None = None
    treated: bool = False
    """Whether the held object has been cleaned, heated or cooled as the task asks."""
    placed: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    """Receptacles that do not take the held object."""
    last: str = ""
    order: dict[str, int] = field(default_factory=dict)
    """Which of equally good receptacles comes first."""

    def act(self, observation: Observation) -> str:
        """Return the next command; observations must come in order, the first being that of the reset."""
        if not self.receptacles:
            self._begin(observation.text)
        self._read(observation.text)
        if observation.admissible is not None:
            self._read_admissible(observation.admissible)
        command = self._choose()
        offered = observation.admissible
        while offered is not None and command not in offered and command != "look":
            command = self._give_up(command)
        self.last = command
        return command

    def _begin(self, text: str) -> None:
        self.goal = read_goal(text)
        room = _ROOM.search(text)
        self.receptacles = tuple(_THING.findall(room[1])) if room else ()
        ranked = sorted(self.receptacles, key=lambda name: int(name.partition(" ")[2]))
        if self.seed is not None:
            draws = Draws("expert", self.seed, text)
            keys = {name: draws.below(1 << 30) for name in ranked}
            ranked.sort(key=keys.__getitem__)
        self.order = {name: rank for rank, name in enumerate(ranked)}

    def _read(self, text: str) -> None:
        """Take in what the last command was answered with, whoever gave it."""
        if match := _ARRIVED.match(text):
            self.here = frozenset({match[1]})
        if match := _CONTENTS.search(text):
            self.contents[match[1] or match[2]] = _THING.findall(match[3])
            self.closed.discard(match[1] or match[2])
        elif match := _CLOSED.search(text) or _CLOSE.match(text):
            self.closed.add(match[1])
        elif match := _TOOK.match(text):
            self._hold(match[1])
            self.placed.discard(match[1])
            self.contents[match[2]] = [name for name in self.contents.get(match[2], ()) if name != match[1]]
        elif match := _MOVED.match(text):
            self._hold(None)
            self.contents.setdefault(match[2], []).append(match[1])
            if _type(match[2]) == self.goal.target_type:
                self.placed.add(match[1])
        elif text == _NOTHING and self.last.startswith("go to "):
            self.here |= {self.last.removeprefix("go to ")}  # it shares the place where the agent is already
        elif match := _TREATED.match(text):
            self.treated = match[1] == TREATMENTS.get(self.goal.kind, ("", ""))[0]

    def _read_admissible(self, commands: tuple[str, ...]) -> None:
        """Learn from the commands what is at hand, what of it is closed, and what is held."""
        listed = frozenset(commands)
        at_hand = {match[1] for command in commands if (match := _EXAMINE.match(command))}
        self.here = frozenset(at_hand.intersection(self.receptacles))
        self.closed |= {name for name in self.here if f"open {name}" in listed}
        held = next(iter(at_hand.difference(self.receptacles)), None)
        if held != self.held:
            self._hold(held)

    def _hold(self, name: str | None) -> None:
        self.held, self.treated, self.refused = name, False, set()

    def _choose(self) -> str:
        if self.held is None:
            return self._fetch()
        if _type(self.held) != self.goal.object_type:
            return self._put_down(self.held)
        if self.goal.kind == "look_at_obj_in_light":
            return self._light()
        if self.goal.kind in TREATMENTS and not self.treated:
            return self._treat(self.held)
        return self._deliver(self.held)

    def _fetch(self) -> str:
        """Take an object of the kind that the task asks for, or look for one."""
        full = self._half_done()
        known = [
            (receptacle, name)
            for receptacle, names in self.contents.items()
            for name in names
            if _type(name) == self.goal.object_type and name not in self.placed and receptacle != full
        ]
        if not known:
            return self._explore(self.goal.object_type)
        receptacle, name = min(known, key=lambda pair: (pair[0] not in self.here, self.order[pair[0]]))
        if receptacle not in self.here:
            return f"go to {receptacle}"
        return f"open {receptacle}" if receptacle in self.closed else f"take {name} from {receptacle}"

    def _explore(self, wanted: str) -> str:
        """Look into the receptacle that promises most a step; look everywhere anew when all have been seen."""
        unseen = [name for name in self.receptacles if name not in self.contents]
        if not unseen:
            self.contents.clear()
            unseen = list(self.receptacles)
        likely = self.prior.get(wanted, {})

        def promise(name: str) -> float:
            kind = _type(name)
            shut = name in self.closed or (kind in OPENABLE and name not in self.here)
            steps = (name not in self.here or name not in self.closed) + shut
            return max(likely.get(kind, 0.0), _UNHEARD_OF) / steps

        best = max(unseen, key=lambda name: (promise(name), -self.order[name]))
        if best not in self.here:
            return f"go to {best}"
        return f"open {best}" if best in self.closed else f"examine {best}"

    def _light(self) -> str:
        """Switch on the lamp beside which the object is to be looked at, or look for it."""
        for receptacle, names in self.contents.items():
            for name in names:
                if _type(name) == self.goal.target_type:
                    return f"use {name}" if receptacle in self.here else f"go to {receptacle}"
        return self._explore(self.goal.target_type)

    def _treat(self, held: str) -> str:
        verb, appliance = TREATMENTS[self.goal.kind]
        fit = [name for name in self.receptacles if _type(name) == appliance]
        best = min(fit, key=lambda name: (name not in self.here, self.order[name]))
        return f"{verb} {held} with {best}" if best in self.here else f"go to {best}"

    def _deliver(self, held: str) -> str:
        best = self._half_done()
        if best is None or best in self.refused:
            takers = [n for n in self.receptacles if _type(n) == self.goal.target_type and n not in self.refused]
            best = min(takers, key=lambda name: (self._steps_to_open(name), self.order[name]), default=None)
        return self._move(held, best)

    def _put_down(self, held: str) -> str:
        """Get rid of an object that is of no use, where such objects lie."""
        likely = self.prior.get(_type(held), {})
        takers = [name for name in self.receptacles if name not in self.refused]
        rank = {name: (likely.get(_type(name), 0.0), name in self.here, -self.order[name]) for name in takers}
        return self._move(held, max(takers, key=rank.__getitem__, default=None))

    def _move(self, held: str, receptacle: str | None) -> str:
        if receptacle is None:
            return "look"
        if receptacle not in self.here:
            return f"go to {receptacle}"
        return f"open {receptacle}" if receptacle in self.closed else f"move {held} to {receptacle}"

    def _half_done(self) -> str | None:
        """Return the receptacle that holds one of two objects already."""
        if self.goal.kind != "pick_two_obj_and_place":
            return None
        for receptacle, names in self.contents.items():
            if _type(receptacle) == self.goal.target_type and any(
                _type(name) == self.goal.object_type for name in names
            ):
                return receptacle
        return None

    def _steps_to_open(self, name: str) -> int:
        known = name in self.contents or name in self.here
        shut = name in self.closed or (_type(name) in OPENABLE and not known)
        return (name not in self.here) + shut

    def _give_up(self, command: str) -> str:
        """Return another command where the world does not offer this one."""
        receptacle = command.partition(" to ")[2]
        if not command.startswith("move ") or receptacle in self.refused:
            return "look"
        self.refused.add(receptacle)
        return self._choose()
