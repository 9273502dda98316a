"""The household world once more, as plainly as its rules can be written: a set of facts, no tables, no caches.

It follows the published domain and grammar line by line, and is what the fast engine is compared with in random play.
"""

from __future__ import annotations

from collections.abc import Iterator

from envrl.envs.household.problem import Problem, names_of

Fact = tuple[str, ...]


class PlainPlay:
    """One episode, slowly."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.names = problem, names_of(problem)
        self.items = {item.id: item for item in problem.items}
        self.receptacles = {receptacle.id: receptacle for receptacle in problem.receptacles}
        self.facts: set[Fact] = {("in", *pair) for pair in problem.in_receptacle}
        self.facts |= {("at", item.id, place) for item in problem.items for place in item.locations}
        self.facts |= {("cool", item.id) for item in problem.items if "iscool" in item.flags}
        self.place, self.held, self.done = problem.start, "", False
        every = self.listed([self.names[r] for r in self.receptacles])
        self.text = (
            "-= Welcome to TextWorld, ALFRED! =-\n\n"
            f"You are in the middle of a room. Looking quickly around you, you see {every}.\n\n"
            f"Your task is to: {problem.task}"
        )

    def listed(self, names: list[str], article: str = "a ") -> str:
        names = [article + name for name in names]
        if len(names) > 1:
            return ", ".join(names[:-1]) + ", and " + names[-1]
        return names[0] if names else "nothing"

    def here(self) -> list[str]:
        return sorted(r for r, receptacle in self.receptacles.items() if receptacle.location == self.place)

    def shut(self, receptacle: str) -> bool:
        return self.receptacles[receptacle].openable and ("open", receptacle) not in self.facts

    def inside(self, receptacle: str) -> list[str]:
        return sorted(item for item in self.items if ("in", item, receptacle) in self.facts)

    def actions(self) -> Iterator[tuple[str, Fact]]:
        name, here, held = self.names, self.here(), self.held
        yield from (("help", ("help",)), ("look", ("look",)), ("inventory", ("inventory",)))
        for r, receptacle in self.receptacles.items():
            if r not in here:
                yield f"go to {name[r]}", ("go", r)
                continue
            yield f"examine {name[r]}", ("examine_receptacle", r)
            if receptacle.openable:
                verb = "open" if self.shut(r) else "close"
                yield f"{verb} {name[r]}", (verb, r)
            for o in self.inside(r):
                if not held and "pickupable" in self.items[o].flags and not self.shut(r):
                    yield f"take {name[o]} from {name[r]}", ("take", o, r)
                if "toggleable" in self.items[o].flags:
                    yield f"use {name[o]}", ("use", o)
            if held:
                if not self.shut(r) and (receptacle.type, self.items[held].type) in self.problem.can_contain:
                    yield f"move {name[held]} to {name[r]}", ("move", held, r)
                for verb, flag, kinds in (
                    ("heat", "heatable", ["microwave"]),
                    ("cool", "coolable", ["fridge"]),
                    ("clean", "cleanable", ["sink", "sinkbasin"]),
                ):
                    if flag in self.items[held].flags and receptacle.type in kinds:
                        yield f"{verb} {name[held]} with {name[r]}", (verb, held, r)
        if held:
            yield f"examine {name[held]}", ("examine_object", held)
            if self.items[held].type in ("knife", "butterknife"):
                for o, item in self.items.items():
                    if "sliceable" in item.flags and ("at", o, self.place) in self.facts:
                        yield f"slice {name[o]} with {name[held]}", ("slice", o, held)

    def admissible(self) -> list[str]:
        return sorted(dict(self.actions()))

    def step(self, command: str) -> None:
        if self.done:
            return
        action = dict(self.actions()).get(command.strip())
        self.text = "Nothing happens." if action is None else self.carry_out(*action)
        self.done = self.won()

    def carry_out(self, verb: str, first: str = "", second: str = "") -> str:
        one, two = self.names.get(first, ""), self.names.get(second, "")
        if verb == "help":
            return self.problem.help
        if verb == "look":
            return self.look()
        if verb == "inventory":
            return f"You are carrying: a {self.names[self.held]}." if self.held else "You are not carrying anything."
        if verb == "go":
            self.place = self.receptacles[first].location
            return f"You arrive at {one}. {self.contents(first)}"
        if verb in ("open", "close"):
            (self.facts.add if verb == "open" else self.facts.discard)(("open", first))
            return f"You open the {one}. {self.contents(first)}" if verb == "open" else f"You close the {one}."
        if verb == "examine_receptacle":
            return self.contents(first)
        if verb == "examine_object":
            return self.description(first)
        if verb == "take":
            self.held = first
            self.facts -= {("in", first, second), ("at", first, self.place)}
            self.facts.add(("not in", first, second))
            return f"You pick up the {one} from the {two}."
        if verb == "move":
            self.held = ""
            self.facts |= {("in", first, second), ("at", first, self.place)}
            self.facts.discard(("not in", first, second))
            return f"You move the {one} to the {two}."
        if verb == "slice":
            self.facts.add(("sliced", first))
            return f"You sliced the {one} with the {two}."
        if verb == "use":
            self.facts.add(("on", first))
            return f"You turn on the {one}."
        self.facts -= {("hot", first), ("cool", first)} if verb != "clean" else set()
        self.facts.add(({"heat": "hot", "cool": "cool", "clean": "clean"}[verb], first))
        return f"You {verb} the {one} using the {two}."

    def contents(self, r: str) -> str:
        if self.shut(r):
            return f"The {self.names[r]} is closed."
        seen = self.listed([self.names[o] for o in self.inside(r)])
        if self.receptacles[r].openable:
            return f"The {self.names[r]} is open. In it, you see {seen}."
        return f"On the {self.names[r]}, you see {seen}."

    def look(self) -> str:
        if not self.here():
            return "You are in the middle of a room. Looking quickly around you, you see nothing."
        beside = [
            self.names[o]
            for o in sorted(self.items)
            for r in self.here()
            if ("at", o, self.place) in self.facts and ("not in", o, r) in self.facts
        ]
        faced = self.listed([self.names[r] for r in self.here()], article="")
        return f"You are facing the {faced}. Next to it, you see {self.listed(beside)}."

    def description(self, o: str) -> str:
        name, flags = self.names[o], self.items[o].flags
        if "isreceptacleobject" in flags:
            inner = sorted(i for i, outer in self.problem.in_object if outer == o and i != o)
            return f"This is a normal {name}. In it, you see {self.listed([self.names[i] for i in inner])}."
        is_ = {fact[0] for fact in self.facts if fact[1:] == (o,)}
        for needed, words in (
            ({"clean", "hot", "sliced"}, "hot and clean sliced"),
            ({"clean", "cool", "sliced"}, "cool and clean sliced"),
            ({"clean", "sliced"}, "clean sliced"),
            ({"hot", "sliced"}, "hot sliced"),
            ({"cool", "sliced"}, "cool sliced"),
            ({"clean", "hot"}, "hot and clean"),
            ({"clean", "cool"}, "cool and clean"),
            ({"hot"}, "hot"),
            ({"clean"}, "clean"),
            ({"cool"}, "cold"),
        ):
            if needed <= is_:
                return f"This is a {words} {name}."
        if "toggleable" in flags and "on" in is_:
            return f"This {name} is on."
        return f"This is a sliced {name}." if "sliced" in is_ else f"There's nothing special about {name}."

    def won(self) -> bool:
        kind, wanted, target = self.problem.goal.kind, self.problem.goal.object_type, self.problem.goal.target_type
        if kind == "look_at_obj_in_light":
            lit = any(
                item.type == target and "toggleable" in item.flags and ("on", o) in self.facts and o in self.inside(r)
                for o, item in self.items.items()
                for r in self.here()
            )
            return lit and bool(self.held) and self.items[self.held].type == wanted
        flag, state = {
            "pick_clean_then_place_in_recep": ("cleanable", "clean"),
            "pick_heat_then_place_in_recep": ("heatable", "hot"),
            "pick_cool_then_place_in_recep": ("coolable", "cool"),
        }.get(kind, ("", ""))
        counts = [
            sum(
                self.items[o].type == wanted
                and (not flag or (flag in self.items[o].flags and (state, o) in self.facts))
                for o in self.inside(r)
            )
            for r, receptacle in self.receptacles.items()
            if receptacle.type == target
        ]
        return max(counts, default=0) >= (2 if kind == "pick_two_obj_and_place" else 1)
