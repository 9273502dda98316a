"""One household game as facts: what ALFWorld's files say, what the generator makes, and what the engine plays.

Ids, types and predicate names are those of the PDDL, in lower case, types without their ending `type`
(`CounterTopType` is `countertop`). Everything that a player sees is made from the ids: see `names_of`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

OBJECT_FLAGS = (
    "pickupable",
    "cleanable",
    "heatable",
    "coolable",
    "sliceable",
    "toggleable",
    "isreceptacleobject",
    "iscool",
)
"""The predicates of one object that a game can start with."""

GOAL_KINDS = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
"""The six task types, by the names that ALFWorld's task folders begin with."""

HELP = """Available commands:
  look:                             look around your current location
  inventory:                        check your current inventory
  go to (receptacle):               move to a receptacle
  open (receptacle):                open a receptacle
  close (receptacle):               close a receptacle
  take (object) from (receptacle):  take an object from a receptacle
  move (object) to (receptacle):  place an object in or on a receptacle
  examine (something):              examine a receptacle or an object
  use (object):                     use an object
  heat (object) with (receptacle):  heat an object using a receptacle
  clean (object) with (receptacle): clean an object using a receptacle
  cool (object) with (receptacle):  cool an object using a receptacle
  slice (object) with (object):     slice an object using a sharp object
"""
"""The answer to `help`, the same in every published game."""


@dataclass(frozen=True, slots=True)
class Receptacle:
    """A place that holds objects: `id` such as `drawer_bar__minus_01_dot_44`, `type` such as `drawer`."""

    id: str
    type: str
    location: str
    openable: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """An object: `locations` are its objectAtLocation facts (rarely none or two), `flags` a subset of `OBJECT_FLAGS`.

    `type` is empty for an object that some fact names without giving it a type; it still takes a number of its name.
    """

    id: str
    type: str
    locations: tuple[str, ...]
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Goal:
    """What wins: `kind` is one of `GOAL_KINDS`; `target_type` a receptacle's type (look_at_obj_in_light: a lamp's)."""

    kind: str
    object_type: str
    target_type: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One game. Nothing starts open, held or switched on; `receptacles` and `items` are sorted by id.

    `task` is the sentence after "Your task is to: ", with its full stop; `in_receptacle` holds (object id, receptacle
    id) and may name two receptacles for one object; `in_object` (inner object id, outer object id); `can_contain`
    (receptacle type, object type); `start` is a location that no receptacle has. Raises `ValueError` where ids are
    not sorted and unique, since every list that a player sees is in their order.
    """

    receptacles: tuple[Receptacle, ...]
    items: tuple[Item, ...]
    in_receptacle: frozenset[tuple[str, str]]
    can_contain: frozenset[tuple[str, str]]
    start: str
    goal: Goal
    task: str
    walkthrough: tuple[str, ...]
    in_object: frozenset[tuple[str, str]] = frozenset()
    help: str = HELP

    def __post_init__(self) -> None:
        for kind, records in (("receptacles", self.receptacles), ("items", self.items)):
            ids = [record.id for record in records]
            if ids != sorted(set(ids)):
                raise ValueError(f"the {kind} of a problem must have unique ids in sorted order")


def base_name(identifier: str) -> str:
    """Return a name without its number: the part before the first `_bar_`, `basin` added where the id contains it."""
    name = identifier.partition("_bar_")[0]
    return name + "basin" if name != identifier and "basin" in identifier[len(name) :] else name


def names_of(problem: Problem) -> dict[str, str]:
    """Return every id's name as a player reads it, `drawer 3`: numbers of a name count *down* in sorted-id order."""
    ids = sorted([r.id for r in problem.receptacles] + [i.id for i in problem.items])
    bases = [base_name(identifier) for identifier in ids]
    left = Counter(bases)
    names = {}
    for identifier, base in zip(ids, bases, strict=True):
        names[identifier] = f"{base} {left[base]}"
        left[base] -= 1
    return names
