"""The walkthrough of a generated game: a short way to win it, by one who knows where everything is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from envrl.envs.household.catalogue import TREATMENTS
from envrl.envs.household.problem import Item, Problem, Receptacle, names_of


@dataclass(slots=True)
class _Walk:
    """Commands so far, where they lead, and what they open."""

    names: dict[str, str]
    location: str = ""
    opened: set[str] = field(default_factory=set)
    commands: list[str] = field(default_factory=list)

    def go(self, receptacle: Receptacle) -> None:
        if receptacle.location != self.location:
            self.commands.append(f"go to {self.names[receptacle.id]}")
            self.location = receptacle.location

    def reach_into(self, receptacle: Receptacle) -> None:
        self.go(receptacle)
        if receptacle.openable and receptacle.id not in self.opened:
            self.commands.append(f"open {self.names[receptacle.id]}")
            self.opened.add(receptacle.id)

    def take(self, item: Item, receptacle: Receptacle) -> None:
        self.reach_into(receptacle)
        self.commands.append(f"take {self.names[item.id]} from {self.names[receptacle.id]}")

    def move(self, item: Item, receptacle: Receptacle) -> None:
        self.reach_into(receptacle)
        self.commands.append(f"move {self.names[item.id]} to {self.names[receptacle.id]}")


def solve(problem: Problem) -> Problem:
    """Return the problem with a walkthrough.

    No object of the task's type may lie in a receptacle of the target's type, unless it has to be treated first: then
    the last step wins and no earlier one. Raises `ValueError` where what the task needs is not there.
    """
    goal = problem.goal
    walk = _Walk(names_of(problem))
    sources = _sources(problem)
    needed = 2 if goal.kind == "pick_two_obj_and_place" else 1
    if len(sources) < needed:
        raise ValueError(f"the task needs {needed} {goal.object_type}, and {len(sources)} can be taken")
    if goal.kind == "look_at_obj_in_light":
        walk.take(*sources[0])
        lamp, stand = _lamp(problem)
        walk.go(stand)
        walk.commands.append(f"use {walk.names[lamp.id]}")
        return replace(problem, walkthrough=tuple(walk.commands))
    target = _easiest(problem, goal.target_type)
    for item, source in sources[:needed]:
        walk.take(item, source)
        if goal.kind in TREATMENTS:
            verb, appliance_type = TREATMENTS[goal.kind]
            appliance = _easiest(problem, appliance_type)
            walk.go(appliance)
            walk.commands.append(f"{verb} {walk.names[item.id]} with {walk.names[appliance.id]}")
        walk.move(item, target)
    return replace(problem, walkthrough=tuple(walk.commands))


def _sources(problem: Problem) -> list[tuple[Item, Receptacle]]:
    """Return every object of the task's type with a receptacle that it lies in, those in plain sight first."""
    receptacles = {receptacle.id: receptacle for receptacle in problem.receptacles}
    held_in = {item: receptacles[receptacle] for item, receptacle in sorted(problem.in_receptacle)}
    found = [
        (item, held_in[item.id])
        for item in problem.items
        if item.type == problem.goal.object_type and item.id in held_in and "pickupable" in item.flags
    ]
    return sorted(found, key=lambda pair: pair[1].openable)


def _easiest(problem: Problem, receptacle_type: str) -> Receptacle:
    """Return the first receptacle of a type, one that is open to the eye if there is any."""
    fit = [receptacle for receptacle in problem.receptacles if receptacle.type == receptacle_type]
    if not fit:
        raise ValueError(f"the task needs a {receptacle_type}, and there is none")
    return min(fit, key=lambda receptacle: receptacle.openable)


def _lamp(problem: Problem) -> tuple[Item, Receptacle]:
    receptacles = {receptacle.id: receptacle for receptacle in problem.receptacles}
    held_in = {item: receptacles[receptacle] for item, receptacle in sorted(problem.in_receptacle)}
    for item in problem.items:
        if item.type == problem.goal.target_type and "toggleable" in item.flags and item.id in held_in:
            return item, held_in[item.id]
    raise ValueError(f"the task needs a {problem.goal.target_type} in a receptacle, and there is none")
