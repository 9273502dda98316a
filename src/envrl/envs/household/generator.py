"""New household games in the manner of ALFWorld's, each a pure function of its split and index.

A game is drawn in two parts. Its *header* (kind of task, room, what, whereto) is cheap, so that a split can be listed;
its *contents* (what lies where) are drawn around the header so that the task can be done and is not done at the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import overload

from envrl.envs.household.catalogue import (
    ALSO_ON,
    CLEANABLE,
    CONTAINS,
    COOLABLE,
    COPIES,
    FIXED,
    HEATABLE,
    LAMPS,
    OBJECT_TYPES,
    RECEPTACLE_TYPES,
    ROOM_KINDS,
    SINGLE,
    SLICEABLE,
    TASK_WEIGHTS,
    TREATMENTS,
    VESSELS,
)
from envrl.envs.household.draws import Draws
from envrl.envs.household.floorplan import FloorPlan, Place, Point, bar_id, floor_plan, rooms_of
from envrl.envs.household.problem import Goal, Item, Problem
from envrl.envs.household.solution import solve
from envrl.errors import UserError, suggest
from envrl.types import Task

SPLIT_SIZES = {"train": 20_000, "valid_seen": 500, "valid_unseen": 500, "valid_train": 500}
"""Games in each split: `valid_unseen` has rooms of its own, all others share theirs; tune on `valid_train`."""

LAMP = "desklamp"
_TASK_TOTALS = {kind: sum(rooms.values()) for kind, rooms in TASK_WEIGHTS.items()}
_TREATABLE = {"clean": CLEANABLE, "heat": HEATABLE, "cool": COOLABLE}
SENTENCES = {
    "pick_and_place_simple": ("put a {object} in {target}.", "put some {object} on {target}."),
    "look_at_obj_in_light": ("look at {object} under the {target}.", "examine the {object} with the {target}."),
    "pick_clean_then_place_in_recep": (
        "put a clean {object} in {target}.",
        "clean some {object} and put it in {target}.",
    ),
    "pick_heat_then_place_in_recep": ("put a hot {object} in {target}.", "heat some {object} and put it in {target}."),
    "pick_cool_then_place_in_recep": ("put a cool {object} in {target}.", "cool some {object} and put it in {target}."),
    "pick_two_obj_and_place": ("put two {object} in {target}.", "find two {object} and put them in {target}."),
}
_FLAGS = (
    ("cleanable", CLEANABLE),
    ("heatable", HEATABLE),
    ("coolable", COOLABLE),
    ("sliceable", SLICEABLE),
    ("toggleable", LAMPS),
    ("isreceptacleobject", VESSELS),
)


@dataclass(frozen=True, slots=True)
class Header:
    """What a game asks, and in which room."""

    goal: Goal
    room: int
    sentence: str


def header(split: str, index: int) -> Header:
    """Return what the game asks; raises `UserError` for an unknown split or an index outside it."""
    _check(split, index)
    draws = Draws("header", split, index)
    kind = draws.name(_TASK_TOTALS)
    while True:
        room = draws.one_of(rooms_of(split, draws.name(TASK_WEIGHTS[kind])))
        choices = _choices(kind, room)
        if choices:
            break
    object_type, targets = draws.one_of(choices)
    goal = Goal(kind, object_type, draws.one_of(targets))
    sentence = draws.one_of(SENTENCES[kind]).format(object=object_type, target=goal.target_type)
    return Header(goal, room, sentence)


@cache  # a run lists its split several times: 20,000 tasks take 0.3 s, and some megabytes once
def task_of(split: str, index: int) -> Task:
    """Return the task, cheaply; its id names kind, object, target and room, and ends with the index.

    An example: `train/pick_and_place_simple-Mug-None-Shelf-r12/000123`. Raises `UserError` as `header` does.
    """
    game = header(split, index)
    goal = game.goal
    target = OBJECT_TYPES.get(goal.target_type) or RECEPTACLE_TYPES[goal.target_type]
    name = f"{goal.kind}-{OBJECT_TYPES[goal.object_type]}-None-{target}-r{game.room}"
    return Task(id=f"{split}/{name}/{index:06d}", split=split, kind=goal.kind)


def index_of(task: Task) -> tuple[str, int]:
    """Return the split and index of a task by its id; raises `UserError` for an id that is no game's."""
    found = _named(task.id)
    if found is not None and task_of(*found).id == task.id:
        return found
    raise UserError(f"there is no household game '{task.id}'; take one of env.tasks(split)")


def _named(task_id: str) -> tuple[str, int] | None:
    """Return the split and index that an id names, if there can be such a game."""
    split, _, rest = task_id.partition("/")
    number = rest.rpartition("/")[2]
    there = rest.count("/") == 1 and number.isdecimal() and int(number) < SPLIT_SIZES.get(split, 0)
    return (split, int(number)) if there else None


class GeneratedTasks(Sequence[Task]):
    """The tasks of a split in their order, each made when it is asked for."""

    def __init__(self, split: str) -> None:
        _check(split, 0)
        self._split = split

    def __len__(self) -> int:
        return SPLIT_SIZES[self._split]

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return [task_of(self._split, number) for number in numbers]
        return task_of(self._split, numbers)

    def __contains__(self, task: object) -> bool:
        """True for a task of the split; none is made but the one of that number."""
        place = _named(task.id) if isinstance(task, Task) else None
        return place is not None and place[0] == self._split and task_of(*place) == task


def generate_problem(split: str, index: int) -> Problem:
    """Return the game, with a walkthrough that wins at its last step; raises `UserError` as `header` does."""
    game = header(split, index)
    goal, plan = game.goal, floor_plan(game.room)
    draws = Draws("contents", split, index)
    items: dict[str, Item] = {}
    lies: set[tuple[str, str]] = set()
    for object_type, count in _counts(goal, plan.kind, draws):
        for _ in range(count):
            place = _place(plan, object_type, _kept_free(goal, object_type), draws)
            if place is None:
                continue
            item = _item(object_type, place, items, draws)
            items[item.id] = item
            lies.add((item.id, place.receptacle.id))
            if place.also_on and object_type != goal.object_type and draws.chance(ALSO_ON[place.receptacle.type]):
                lies.add((item.id, place.also_on))
    receptacles = tuple(place.receptacle for place in plan.places)
    unsolved = Problem(
        receptacles=receptacles,
        items=tuple(items[identifier] for identifier in sorted(items)),
        in_receptacle=frozenset(lies),
        can_contain=_can_contain(game.room),
        start=plan.start,
        goal=goal,
        task=game.sentence,
        walkthrough=(),
    )
    return solve(unsolved)


def _check(split: str, index: int) -> None:
    if split not in SPLIT_SIZES:
        raise UserError(f"the world 'household' has no split '{split}'{suggest(split, SPLIT_SIZES)}")
    if not 0 <= index < SPLIT_SIZES[split]:
        raise UserError(f"split '{split}' of 'household' has games 0 to {SPLIT_SIZES[split] - 1}, not {index}")


@cache
def _choices(kind: str, room: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the object types that a task of a kind may ask for in a room, each with the types of its targets."""
    plan = floor_plan(room)
    tables = ROOM_KINDS[plan.kind]
    if kind == "look_at_obj_in_light":
        return tuple((name, (LAMP,)) for name in sorted(tables.looked_at) if _where(room, name, ""))
    verb, appliance = TREATMENTS.get(kind, ("", ""))
    if appliance and not plan.of_type(appliance):
        return ()
    found = []
    for name, targets in tables.targets.items():
        if verb and name not in _TREATABLE[verb]:
            continue
        fit = tuple(
            target
            for target in targets
            if plan.of_type(target) and target != appliance and _where(room, name, "" if verb else target)
        )
        if fit:
            found.append((name, fit))
    return tuple(found)


@cache
def _where(room: int, object_type: str, free: str) -> tuple[tuple[tuple[Place, ...], int], ...]:
    """Return the places where an object may lie, by type, with the types' weights; type `free` is left out."""
    plan = floor_plan(room)
    weights = ROOM_KINDS[plan.kind].places[object_type]
    found = ((plan.of_type(name), weight) for name, weight in weights.items() if name != free)
    return tuple((places, weight) for places, weight in found if places)


@cache
def _can_contain(room: int) -> frozenset[tuple[str, str]]:
    types = {place.receptacle.type for place in floor_plan(room).places}
    return frozenset((name, held) for name in types for held in CONTAINS[name])


def _kept_free(goal: Goal, object_type: str) -> str:
    """Return the type of receptacle that must hold none of these objects, lest the task be done at the start."""
    done_by_lying = goal.kind in ("pick_and_place_simple", "pick_two_obj_and_place")
    return goal.target_type if done_by_lying and object_type == goal.object_type else ""


def _counts(goal: Goal, kind: str, draws: Draws) -> Iterator[tuple[str, int]]:
    """Yield each type of objects in the room with how many there are, the task's own first."""
    copies = COPIES["two" if goal.kind == "pick_two_obj_and_place" else "task"]
    yield goal.object_type, 1 + draws.weighted(copies)
    for object_type, share in ROOM_KINDS[kind].presence.items():
        if object_type == goal.target_type:
            yield object_type, 1
        elif object_type != goal.object_type and draws.chance(share):
            yield object_type, 1 if object_type in SINGLE else 1 + draws.weighted(COPIES["other"])


def _place(plan: FloorPlan, object_type: str, free: str, draws: Draws) -> Place | None:
    where = _where(plan.room, object_type, free)
    if not where:
        return None
    places, _ = where[draws.weighted([weight for _, weight in where])]
    return draws.one_of(places)


def _item(object_type: str, place: Place, taken: dict[str, Item], draws: Draws) -> Item:
    x, y, z = place.point
    while True:
        point: Point = (x + draws.between(-40, 40), y + draws.between(0, 15), z + draws.between(-40, 40))
        identifier = bar_id(object_type, point)
        if identifier not in taken:
            return Item(identifier, object_type, (place.receptacle.location,), _flags(object_type))


@cache
def _flags(object_type: str) -> frozenset[str]:
    flags = {flag for flag, types in _FLAGS if object_type in types}
    return frozenset(flags if object_type in FIXED else flags | {"pickupable"})
