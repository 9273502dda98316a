"""What of a household game never changes, made once and shared by all its episodes.

A `Game` holds names, places and go commands. A `View` is one place in one configuration (what is open, what lies where)
with all that can be read and done there; a game makes each view once, and an episode moves from view to view.

Sets are bit masks: bit i of an item mask is item i in sorted-id order, so that reading bits upwards gives the
order in which the original lists things.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from envrl.envs.household.problem import Item, Problem, Receptacle, names_of

NOTHING_HELD = -1
_BANNER = "-= Welcome to TextWorld, ALFRED! =-"
_ROOM = "You are in the middle of a room. Looking quickly around you, you see {}."
_KNIVES = frozenset({"knife", "butterknife"})
_SINKS = frozenset({"sink", "sinkbasin"})
_MAX_VIEWS = 5_000
_TREATABLE = {
    "pick_clean_then_place_in_recep": "cleanable",
    "pick_heat_then_place_in_recep": "heatable",
    "pick_cool_then_place_in_recep": "coolable",
}

Action = tuple[str, Any, Any]
"""The name of one of the engine's actions, and its two arguments."""


class Configuration(NamedTuple):
    """What can change at one place: masks of items, or of this place's receptacles in sorted-id order."""

    opened: int  # receptacles that are open
    contents: tuple[int, ...]  # items in each receptacle
    loose: int  # items with an objectAtLocation fact here
    taken: tuple[int, ...]  # items taken from each receptacle and not put back


class Menu(NamedTuple):
    """The commands of a view for one held item (or none): what each does, and the admissible list."""

    actions: dict[str, Action]
    admissible: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A location with its receptacles; the agent's first location has none."""

    index: int
    receptacles: tuple[Receptacle, ...]
    numbers: tuple[int, ...]  # the receptacles' numbers in the game's sorted order
    room_for: tuple[int, ...]  # the items that each receptacle can contain
    loose: int  # the items that the game starts with an objectAtLocation fact here for


def bits(mask: int) -> Iterator[int]:
    """Yield the numbers of the set bits, smallest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def listing(names: list[str]) -> str:
    """Return "nothing", "a X", "a X, and a Y" or "a X, a Y, and a Z"."""
    if len(names) < 2:
        return f"a {names[0]}" if names else "nothing"
    return f"a {', a '.join(names[:-1])}, and a {names[-1]}"


class Game:
    """A problem made ready to play: names, places, the first view of each place and every view met so far."""

    def __init__(self, problem: Problem) -> None:
        names = names_of(problem)
        self.problem = problem
        self.items: tuple[Item, ...] = problem.items
        self.item_names = [names[item.id] for item in problem.items]
        self.receptacle_names = [names[receptacle.id] for receptacle in problem.receptacles]
        self.pickupable, self.sliceable = self.flagged("pickupable"), self.flagged("sliceable")
        self.toggleable, self.first_cool = self.flagged("toggleable"), self.flagged("iscool")
        self.places = self._places()
        self.place_of = {number: place.index for place in self.places for number in place.numbers}
        self.anywhere = self._anywhere()
        self._views: dict[tuple[int, Configuration], View] = {}
        self.first_views = self._first_views()
        self._set_goal()
        seen = _ROOM.format(listing(self.receptacle_names))
        self.first_text = f"{_BANNER}\n\n{seen}\n\nYour task is to: {problem.task}"

    def flagged(self, flag: str) -> int:
        """Return the mask of the items with a flag."""
        return sum([1 << number for number, item in enumerate(self.items) if flag in item.flags])

    def of_type(self, item_type: str) -> int:
        """Return the mask of the items of a type."""
        return sum([1 << number for number, item in enumerate(self.items) if item.type == item_type])

    def _set_goal(self) -> None:
        """Make the goal's masks: the items that may meet it, and the lamps or the receptacles that it asks for."""
        goal = self.problem.goal
        self.goal_items = self.of_type(goal.object_type)
        if goal.kind in _TREATABLE:
            self.goal_items &= self.flagged(_TREATABLE[goal.kind])
        under_light = goal.kind == "look_at_obj_in_light"
        self.goal_lamps = self.of_type(goal.target_type) & self.toggleable if under_light else 0
        self.goal_slots = tuple(
            [
                (place.index, slot)
                for place in self.places
                for slot, receptacle in enumerate(place.receptacles)
                if receptacle.type == goal.target_type and not under_light
            ]
        )

    def _places(self) -> tuple[Place, ...]:
        """Return the start (index 0), then the locations of receptacles in sorted order."""
        at: dict[str, list[int]] = {self.problem.start: []}
        for location in sorted({receptacle.location for receptacle in self.problem.receptacles}):
            at.setdefault(location, [])
        for number, receptacle in enumerate(self.problem.receptacles):
            at[receptacle.location].append(number)
        of_type: dict[str, int] = {}
        for number, item in enumerate(self.items):
            of_type[item.type] = of_type.get(item.type, 0) | 1 << number
        room: dict[str, int] = {}
        for receptacle_type, item_type in self.problem.can_contain:
            room[receptacle_type] = room.get(receptacle_type, 0) | of_type.get(item_type, 0)
        loose: dict[str, int] = {}
        for number, item in enumerate(self.items):
            for location in item.locations:
                loose[location] = loose.get(location, 0) | 1 << number
        places = []
        for index, (location, numbers) in enumerate(at.items()):
            here = tuple([self.problem.receptacles[number] for number in numbers])
            room_for = tuple([room.get(receptacle.type, 0) for receptacle in here])
            places.append(Place(index, here, tuple(numbers), room_for, loose.get(location, 0)))
        return tuple(places)

    def _anywhere(self) -> dict[str, Action]:
        """Return the commands of no place in particular, sorted; a menu drops those to go to where one is."""
        go = sorted([(f"go to {name}", number) for number, name in enumerate(self.receptacle_names)])
        actions: dict[str, Action] = {command: ("go", number, 0) for command, number in go}
        actions["help"] = ("say", self.problem.help, 0)
        actions["inventory"] = ("inventory", 0, 0)
        actions["look"] = ("look", 0, 0)
        return actions

    def _first_views(self) -> tuple[View, ...]:
        number = {item.id: index for index, item in enumerate(self.items)}
        inside = {receptacle.id: 0 for receptacle in self.problem.receptacles}
        for item, receptacle in self.problem.in_receptacle:
            inside[receptacle] |= 1 << number[item]
        views = []
        for place in self.places:
            contents = tuple([inside[receptacle.id] for receptacle in place.receptacles])
            views.append(self.view(place.index, Configuration(0, contents, place.loose, (0,) * len(contents))))
        return tuple(views)

    def view(self, place: int, configuration: Configuration) -> View:
        """Return the one view of a place in a configuration."""
        key = (place, configuration)
        view = self._views.get(key)
        if view is None:
            if len(self._views) >= _MAX_VIEWS:
                self._views.clear()
            view = self._views[key] = View(self, self.places[place], configuration)
        return view

    def list_items(self, mask: int) -> str:
        """Return the items of a mask as a list in sorted-id order."""
        return listing([self.item_names[number] for number in bits(mask)])

    def inner_text(self, item: int) -> str:
        """Return what a container object shows: what it starts with, for ever, without itself."""
        outer = self.items[item].id
        inside = self.problem.in_object
        return listing(
            [self.item_names[n] for n, inner in enumerate(self.items) if n != item and (inner.id, outer) in inside]
        )


class View:
    """One place in one configuration: what can be read and done there; texts and menus are made when first needed."""

    __slots__ = ("_arrivals", "_facing", "_game", "_menus", "configuration", "inside", "place")

    def __init__(self, game: Game, place: Place, configuration: Configuration) -> None:
        self._game = game
        self._menus: dict[int, Menu] = {}
        self._arrivals: dict[int, str] = {}
        self._facing = ""
        self.place = place
        self.configuration = configuration
        self.inside = 0  # items in any receptacle here
        for mask in configuration.contents:
            self.inside |= mask

    def is_closed(self, slot: int) -> bool:
        """Return whether the place's receptacle `slot` hides its contents."""
        return self.place.receptacles[slot].openable and not self.configuration.opened >> slot & 1

    def contents(self, slot: int) -> str:
        """Return what a look at the place's receptacle `slot` says."""
        name = self._game.receptacle_names[self.place.numbers[slot]]
        if self.is_closed(slot):
            return f"The {name} is closed."
        inside = self._game.list_items(self.configuration.contents[slot])
        if self.place.receptacles[slot].openable:
            return f"The {name} is open. In it, you see {inside}."
        return f"On the {name}, you see {inside}."

    def arrival(self, number: int) -> str:
        """Return the answer to going to the game's receptacle `number`."""
        text = self._arrivals.get(number)
        if text is None:
            name = self._game.receptacle_names[number]
            text = f"You arrive at {name}. {self.contents(self.place.numbers.index(number))}"
            self._arrivals[number] = text
        return text

    def facing(self) -> str:
        """Return the answer to `look`: an item stands beside each receptacle that it was taken from."""
        if not self.place.receptacles:
            return _ROOM.format("nothing")
        if not self._facing:
            names = [self._game.receptacle_names[number] for number in self.place.numbers]
            faced = names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"
            loose, taken = self.configuration.loose, self.configuration.taken
            beside = [self._game.item_names[item] for item in bits(loose) for mask in taken if mask >> item & 1]
            self._facing = f"You are facing the {faced}. Next to it, you see {listing(beside)}."
        return self._facing

    def menu(self, held: int) -> Menu:
        """Return the commands that apply here while item `held` is held."""
        menu = self._menus.get(held)
        if menu is None:
            actions = self._game.anywhere.copy()
            for number in self.place.numbers:
                del actions[f"go to {self._game.receptacle_names[number]}"]
            self._add_receptacle_actions(actions, held)
            for lamp in bits(self.inside & self._game.toggleable):
                actions[f"use {self._game.item_names[lamp]}"] = ("use", lamp, 0)
            if held != NOTHING_HELD:
                self._add_held_actions(actions, held)
            menu = self._menus[held] = Menu(actions, tuple(sorted(actions)))
        return menu

    def _add_receptacle_actions(self, actions: dict[str, Action], held: int) -> None:
        names, can_take = self._game.item_names, self._game.pickupable
        for slot, receptacle in enumerate(self.place.receptacles):
            name, closed = self._game.receptacle_names[self.place.numbers[slot]], self.is_closed(slot)
            actions[f"examine {name}"] = ("say", self.contents(slot), 0)
            if receptacle.openable:
                verb = "open" if closed else "close"
                actions[f"{verb} {name}"] = (verb, slot, 0)
            if closed:
                continue
            if held == NOTHING_HELD:
                for item in bits(self.configuration.contents[slot] & can_take):
                    actions[f"take {names[item]} from {name}"] = ("take", slot, item)
            elif self.place.room_for[slot] >> held & 1:
                actions[f"move {names[held]} to {name}"] = ("move", slot, 0)

    def _add_held_actions(self, actions: dict[str, Action], held: int) -> None:
        names, item = self._game.item_names, self._game.items[held]
        actions[f"examine {names[held]}"] = ("examine", 0, 0)
        for number, receptacle in zip(self.place.numbers, self.place.receptacles, strict=True):
            name = self._game.receptacle_names[number]
            if receptacle.type == "microwave" and "heatable" in item.flags:
                actions[f"heat {names[held]} with {name}"] = ("heat", number, 0)
            elif receptacle.type == "fridge" and "coolable" in item.flags:
                actions[f"cool {names[held]} with {name}"] = ("cool", number, 0)
            elif receptacle.type in _SINKS and "cleanable" in item.flags:
                actions[f"clean {names[held]} with {name}"] = ("clean", number, 0)
        if item.type in _KNIVES:
            for other in bits(self.configuration.loose & self._game.sliceable):
                actions[f"slice {names[other]} with {names[held]}"] = ("slice", other, 0)
