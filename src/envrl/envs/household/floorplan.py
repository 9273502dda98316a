"""The rooms of generated games: which receptacles stand where, a pure function of the room's number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from envrl.envs.household.catalogue import (
    ALSO_ON,
    BESIDE,
    HEIGHT,
    OPENABLE,
    PART_OF,
    ROOM_KINDS,
    STUCK,
)
from envrl.envs.household.draws import Draws
from envrl.envs.household.problem import Receptacle

FIRST_ROOM = {"kitchen": 1, "livingroom": 201, "bedroom": 301, "bathroom": 401}
TRAIN_ROOMS, UNSEEN_ROOMS = 10, 3
"""Of each kind; those of `valid_unseen` come after those of `train` and `valid_seen`."""
FEWEST, MOST = 8, 20
"""Receptacles in a room."""

Point = tuple[int, int, int]
"""x, height and z in cm."""


@dataclass(frozen=True, slots=True)
class Place:
    """A receptacle where it stands; what is in it may lie on the receptacle `also_on` too, as it does in ALFRED."""

    receptacle: Receptacle
    point: Point
    also_on: str = ""


@dataclass(frozen=True, slots=True)
class FloorPlan:
    """A room: its places in the order of their ids, and where the agent begins."""

    room: int
    kind: str
    places: tuple[Place, ...]
    start: str

    def of_type(self, name: str) -> tuple[Place, ...]:
        return tuple(place for place in self.places if place.receptacle.type == name)


def rooms_of(split: str, kind: str) -> range:
    """Return the numbers of a split's rooms of a kind."""
    first = FIRST_ROOM[kind]
    if split == "valid_unseen":
        return range(first + TRAIN_ROOMS, first + TRAIN_ROOMS + UNSEEN_ROOMS)
    return range(first, first + TRAIN_ROOMS)


def bar_id(name: str, point: Point) -> str:
    """Return an id in ALFRED's form, such as `mug_bar__minus_00_dot_79_bar__plus_00_dot_95_bar__plus_01_dot_70`."""
    parts = [name]
    for value in point:
        metres, cm = divmod(abs(value), 100)
        parts.append(f"_{'minus' if value < 0 else 'plus'}_{metres:02d}_dot_{cm:02d}")
    return "_bar_".join(parts)


@cache
def floor_plan(room: int) -> FloorPlan:
    """Return the room's floor plan."""
    kind = max((kind for kind, first in FIRST_ROOM.items() if first <= room), key=FIRST_ROOM.__getitem__)
    draws = Draws("room", room)
    types = _furniture(kind, draws)
    spots = _spots(draws)
    spot = next(spots)
    start = location = _location(spot, draws)
    places: list[Place] = []
    for index, name in enumerate(types):
        beside = index > 0 and types[index - 1] == name and draws.chance(BESIDE.get(name, 0))
        if not beside:
            spot = next(spots)
            location = _location(spot, draws)
        low, high = HEIGHT.get(name, (0, 95))
        point = (spot[0] + draws.between(-30, 30), draws.between(low, high), spot[1] + draws.between(-30, 30))
        openable = name in OPENABLE and not draws.chance(STUCK.get(name, 0))
        places.append(Place(Receptacle(_receptacle_id(name, point), name, location, openable), point))
    places = [replace(place, also_on=_also_on(place, places, draws)) for place in places]
    return FloorPlan(room, kind, tuple(sorted(places, key=lambda place: place.receptacle.id)), start)


def _receptacle_id(name: str, point: Point) -> str:
    return f"{bar_id(PART_OF[name], point)}_bar_{name}" if name in PART_OF else bar_id(name, point)


def _furniture(kind: str, draws: Draws) -> list[str]:
    """Return the types of a room's receptacles, one each, in the catalogue's order."""
    room = ROOM_KINDS[kind]
    while True:
        counts = {name: draws.weighted(weights) for name, weights in room.furniture.items()}
        has_lamp_place = "desklamp" not in room.places or any(counts[name] for name in room.places["desklamp"])
        if has_lamp_place and FEWEST <= sum(counts.values()) <= MOST:
            return [name for name, count in counts.items() for _ in range(count)]


def _spots(draws: Draws) -> Iterator[tuple[int, int]]:
    """Yield spots to stand at, in cm, at least 50 cm apart in one direction."""
    width, depth = draws.between(6, 12), draws.between(6, 12)
    left, back = -draws.between(0, width), -draws.between(0, depth)
    taken: set[tuple[int, int]] = set()
    while True:
        spot = (left + draws.below(width), back + draws.below(depth))
        if spot not in taken:
            taken.add(spot)
            yield spot[0] * 50, spot[1] * 50


def _location(spot: tuple[int, int], draws: Draws) -> str:
    """Return a location's id: the spot in steps of 25 cm, the direction in quarter turns, the tilt in degrees."""
    numbers = (spot[0] // 25, spot[1] // 25, draws.below(4), draws.one_of((0, 15, 30, 45, 60)))
    return "_bar_".join(["loc", *(f"_minus_{-n}" if n < 0 else str(n) for n in numbers)])


def _also_on(place: Place, places: list[Place], draws: Draws) -> str:
    """Return the id of the receptacle that this one stands on (a coffee machine) or beside (a burner)."""
    name = place.receptacle.type
    if name not in ALSO_ON:
        return ""
    under = "stoveburner" if name == "stoveburner" else "countertop"
    others = [other.receptacle.id for other in places if other.receptacle.type == under and other is not place]
    return draws.one_of(others) if others else ""
