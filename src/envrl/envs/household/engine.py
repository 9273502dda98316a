"""The household engine: plays one `Problem` and answers, byte for byte, as ALFWorld's text games do.

A `Play` is one episode: the present view of every place (game.py), where the agent stands, what it holds, and which
items are hot, cool, clean, sliced or switched on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from envrl.envs.household.game import NOTHING_HELD, Configuration, Game

NOTHING_HAPPENS = "Nothing happens."


class State(NamedTuple):
    """An episode's whole state as plain values: equal states of one problem answer every command alike."""

    place: int
    held: int
    places: tuple[Configuration, ...]
    hot: int
    cool: int
    clean: int
    sliced: int
    used: int
    won: bool
    done: bool
    text: str


class Answer(NamedTuple):
    """What a command led to; an episode is done when it is won."""

    text: str
    admissible: tuple[str, ...]
    done: bool


class Play:
    """One episode of a game."""

    __slots__ = (
        "_clean",
        "_cool",
        "_done",
        "_held",
        "_hot",
        "_menu",
        "_sliced",
        "_text",
        "_used",
        "_view",
        "_views",
        "_won",
        "game",
    )

    def __init__(self, game: Game) -> None:
        """Start the game."""
        self.game = game
        self._views = list(game.first_views)
        self._view = self._views[0]
        self._held, self._hot, self._cool, self._clean = NOTHING_HELD, 0, game.first_cool, 0
        self._sliced, self._used, self._done = 0, 0, False
        self._text = game.first_text
        self._won = self._meets_goal()
        self._menu = self._view.menu(NOTHING_HELD)

    def save(self) -> State:
        """Return the present state; later steps do not touch it."""
        return State(
            place=self._view.place.index,
            held=self._held,
            places=tuple([view.configuration for view in self._views]),
            hot=self._hot,
            cool=self._cool,
            clean=self._clean,
            sliced=self._sliced,
            used=self._used,
            won=self._won,
            done=self._done,
            text=self._text,
        )

    def load(self, state: State) -> None:
        """Go on from a state that an episode of the same problem saved."""
        view = self.game.view
        self._views = [view(place, configuration) for place, configuration in enumerate(state.places)]
        self._view = self._views[state.place]
        self._held, self._hot, self._cool, self._clean = state.held, state.hot, state.cool, state.clean
        self._sliced, self._used, self._won, self._done = state.sliced, state.used, state.won, state.done
        self._text = state.text
        self._menu = self._view.menu(self._held)

    def answer(self) -> Answer:
        """Return the last answer again."""
        return Answer(self._text, self._menu.admissible, self._done)

    def step(self, command: str) -> Answer:
        """Carry out a command; what is not admissible changes nothing, and after the win the last answer repeats."""
        if not self._done:
            action = self._menu.actions.get(command.strip())
            if action is None:
                self._text = NOTHING_HAPPENS
            else:
                name, first, second = action
                self._text = _ACTIONS[name](self, first, second)
            self._done = self._won
        return Answer(self._text, self._menu.admissible, self._done)

    def _say(self, text: str, _: int) -> str:
        return text

    def _look(self, _: int, __: int) -> str:
        return self._view.facing()

    def _inventory(self, _: int, __: int) -> str:
        if self._held == NOTHING_HELD:
            return "You are not carrying anything."
        return f"You are carrying: a {self.game.item_names[self._held]}."

    def _go(self, number: int, _: int) -> str:
        self._view = view = self._views[self.game.place_of[number]]
        self._menu = view.menu(self._held)
        if self.game.goal_lamps:
            self._won = self._meets_goal()
        return view.arrival(number)

    def _open(self, slot: int, _: int) -> str:
        here = self._view.configuration
        self._reconfigure(here._replace(opened=here.opened | 1 << slot))
        return f"You open the {self._name(slot)}. {self._view.contents(slot)}"

    def _close(self, slot: int, _: int) -> str:
        here = self._view.configuration
        self._reconfigure(here._replace(opened=here.opened & ~(1 << slot)))
        return f"You close the {self._name(slot)}."

    def _take(self, slot: int, item: int) -> str:
        opened, contents, loose, taken = self._view.configuration
        bit = 1 << item
        self._held = item
        contents = _replaced(contents, slot, contents[slot] & ~bit)
        taken = _replaced(taken, slot, taken[slot] | bit)
        self._reconfigure(Configuration(opened, contents, loose & ~bit, taken))
        return f"You pick up the {self.game.item_names[item]} from the {self._name(slot)}."

    def _move(self, slot: int, _: int) -> str:
        opened, contents, loose, taken = self._view.configuration
        item, bit = self._held, 1 << self._held
        self._held = NOTHING_HELD
        contents = _replaced(contents, slot, contents[slot] | bit)
        taken = _replaced(taken, slot, taken[slot] & ~bit)
        self._reconfigure(Configuration(opened, contents, loose | bit, taken))
        return f"You move the {self.game.item_names[item]} to the {self._name(slot)}."

    def _heat(self, number: int, _: int) -> str:
        self._hot |= 1 << self._held
        self._cool &= ~(1 << self._held)
        return self._treated("heat", number)

    def _chill(self, number: int, _: int) -> str:
        self._cool |= 1 << self._held
        self._hot &= ~(1 << self._held)
        return self._treated("cool", number)

    def _wash(self, number: int, _: int) -> str:
        self._clean |= 1 << self._held
        return self._treated("clean", number)

    def _slice(self, item: int, _: int) -> str:
        self._sliced |= 1 << item
        return f"You sliced the {self.game.item_names[item]} with the {self.game.item_names[self._held]}."

    def _use(self, lamp: int, _: int) -> str:
        self._used |= 1 << lamp
        self._won = self._meets_goal()
        return f"You turn on the {self.game.item_names[lamp]}."

    def _examine(self, _: int, __: int) -> str:
        """Return what the held object looks like: the first of the original's descriptions that fits."""
        held, flags = self._held, self.game.items[self._held].flags
        name = self.game.item_names[held]
        if "isreceptacleobject" in flags:
            return f"This is a normal {name}. In it, you see {self.game.inner_text(held)}."
        clean, sliced = self._clean >> held & 1, self._sliced >> held & 1
        warmth = "hot" if self._hot >> held & 1 else "cool" if self._cool >> held & 1 else ""
        if warmth == "cool" and not (clean or sliced):
            warmth = "cold"
        if warmth or clean:
            how = " and ".join([word for word in (warmth, "clean" if clean else "") if word])
            return f"This is a {how} {'sliced ' if sliced else ''}{name}."
        if "toggleable" in flags and self._used >> held & 1:
            return f"This {name} is on."
        return f"This is a sliced {name}." if sliced else f"There's nothing special about {name}."

    def _meets_goal(self) -> bool:
        game, fit = self.game, self.game.goal_items
        if game.goal_lamps:
            return self._held != NOTHING_HELD and bool(
                fit >> self._held & 1 and self._view.inside & self._used & game.goal_lamps
            )
        kind = game.problem.goal.kind
        if kind == "pick_clean_then_place_in_recep":
            fit &= self._clean
        elif kind == "pick_heat_then_place_in_recep":
            fit &= self._hot
        elif kind == "pick_cool_then_place_in_recep":
            fit &= self._cool
        needed = 2 if kind == "pick_two_obj_and_place" else 1
        for place, slot in game.goal_slots:
            if (self._views[place].configuration.contents[slot] & fit).bit_count() >= needed:
                return True
        return False

    def subgoals(self) -> frozenset[str]:
        """Return what of the goal holds now: "taken"; "clean", "hot" or "cool"; "lit"; "placed", and "both placed"."""
        game, goal = self.game, self.game.problem.goal
        reached = set()
        if self._held != NOTHING_HELD and game.goal_items >> self._held & 1:
            reached.add("taken")
        if self._used & game.goal_lamps:
            reached.add("lit")
        fit = game.goal_items
        treatments = {"clean": self._clean, "heat": self._hot, "cool": self._cool}
        verb = goal.kind.removeprefix("pick_").partition("_")[0]
        if verb in treatments:
            fit &= treatments[verb]
            if fit:
                reached.add("hot" if verb == "heat" else verb)
        there = [(self._views[p].configuration.contents[slot] & fit).bit_count() for p, slot in game.goal_slots]
        reached.update(("placed", "both placed")[: min(max(there, default=0), 2)])
        if goal.kind != "pick_two_obj_and_place":
            reached.discard("both placed")
        return frozenset(reached)

    def _name(self, slot: int) -> str:
        return self.game.receptacle_names[self._view.place.numbers[slot]]

    def _treated(self, verb: str, number: int) -> str:
        self._won = self._meets_goal()
        return f"You {verb} the {self.game.item_names[self._held]} using the {self.game.receptacle_names[number]}."

    def _reconfigure(self, configuration: Configuration) -> None:
        """Exchange the present view for the one of the same place in another configuration."""
        place = self._view.place.index
        self._view = self._views[place] = self.game.view(place, configuration)
        self._menu = self._view.menu(self._held)
        self._won = self._meets_goal()


_ACTIONS: dict[str, Callable[[Play, Any, Any], str]] = {
    "say": Play._say,
    "look": Play._look,
    "inventory": Play._inventory,
    "go": Play._go,
    "open": Play._open,
    "close": Play._close,
    "take": Play._take,
    "move": Play._move,
    "heat": Play._heat,
    "cool": Play._chill,
    "clean": Play._wash,
    "slice": Play._slice,
    "use": Play._use,
    "examine": Play._examine,
}


def _replaced(values: tuple[int, ...], index: int, value: int) -> tuple[int, ...]:
    return (*values[:index], value, *values[index + 1 :])
