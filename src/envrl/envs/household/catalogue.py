"""The tables that new games are drawn from, read from `catalogue.toml` beside this file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

Weights = Mapping[str, int]
"""How often each name is drawn, relative to the others."""


@dataclass(frozen=True, slots=True)
class RoomKind:
    """What rooms of a kind hold."""

    furniture: Mapping[str, tuple[int, ...]]
    """Weights of having 0, 1, 2, … receptacles of a type."""
    presence: Mapping[str, int]
    """Of a hundred games, so many have objects of a type."""
    places: Mapping[str, Weights]
    """The types of receptacles in which such an object lies."""
    targets: Mapping[str, tuple[str, ...]]
    """The types of receptacles into which a task asks to put it."""
    looked_at: frozenset[str]
    """Objects that a task asks to look at in the light."""


def _weights(text: str) -> dict[str, int]:
    """Read `"fridge:25 countertop:75"`."""
    pairs = (item.partition(":") for item in text.split())
    return {name: int(weight) for name, _, weight in pairs}


def _room_kind(table: Mapping[str, Any], density: int) -> RoomKind:
    objects: dict[str, list[Any]] = table["objects"]
    return RoomKind(
        furniture={name: tuple(counts) for name, counts in table["furniture"].items()},
        presence={name: share * density // 100 for name, (share, _) in objects.items()},
        places={name: _weights(where) for name, (_, where) in objects.items()},
        targets={name: tuple(where.split()) for name, where in table["targets"].items()},
        looked_at=frozenset(table.get("light", {}).get("looked_at", "").split()),
    )


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TABLES = tomllib.loads(files("envrl.envs.household").joinpath("catalogue.toml").read_text(encoding="utf-8"))
_OBJECTS, _RECEPTACLES = _TABLES["objects"], _TABLES["receptacles"]

RECEPTACLE_TYPES: dict[str, str] = {name.lower(): name for name in _TABLES["names"]["receptacles"].split()}
OBJECT_TYPES: dict[str, str] = {name.lower(): name for name in _TABLES["names"]["objects"].split()}
"""The types as ALFRED writes them, by the lower-case names that the games show."""

CLEANABLE, HEATABLE, COOLABLE = (_names(_OBJECTS[key]) for key in ("cleanable", "heatable", "coolable"))
SLICEABLE, VESSELS, LAMPS = (_names(_OBJECTS[key]) for key in ("sliceable", "vessels", "lamps"))
FIXED, SINGLE = _names(_OBJECTS["fixed"]), _names(_OBJECTS["single"])
"""Objects that cannot be picked up; objects of which a room has at most one."""

OPENABLE = _names(_RECEPTACLES["openable"])
PART_OF: dict[str, str] = _RECEPTACLES["part_of"]
STUCK: Weights = _RECEPTACLES["stuck"]
BESIDE: Weights = _RECEPTACLES["beside"]
ALSO_ON: Weights = _RECEPTACLES["also_on"]
HEIGHT: dict[str, list[int]] = _RECEPTACLES["height"]
"""See the comments in the file; shares are per hundred, heights in cm."""

TREATMENTS: dict[str, tuple[str, str]] = {
    "pick_clean_then_place_in_recep": ("clean", "sinkbasin"),
    "pick_heat_then_place_in_recep": ("heat", "microwave"),
    "pick_cool_then_place_in_recep": ("cool", "fridge"),
}
"""By kind of task: what is done to the object before it is put down, and in which type of receptacle."""

CONTAINS: dict[str, frozenset[str]] = {name: _names(text) for name, text in _TABLES["contains"].items()}
"""What may be put into a receptacle of a type."""

COPIES: dict[str, tuple[int, ...]] = {name: tuple(weights) for name, weights in _TABLES["copies"].items()}
"""Weights of 1, 2, 3, … objects of a type: of the `task`'s type, of the type that it asks `two` of, of any `other`."""

ROOM_KINDS: dict[str, RoomKind] = {kind: _room_kind(_TABLES[kind], share) for kind, share in _TABLES["density"].items()}
TASK_WEIGHTS: dict[str, Weights] = _TABLES["tasks"]
"""How often a task of a kind is set in a room of a kind."""
