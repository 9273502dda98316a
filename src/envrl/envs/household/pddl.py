"""ALFWorld's game files: `game.tw-pddl`, a JSON object whose `pddl_problem` and `grammar` are texts."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from envrl.envs.household.problem import GOAL_KINDS, OBJECT_FLAGS, Goal, Item, Problem, Receptacle
from envrl.errors import UserError

_FACT = re.compile(r"\(([a-z]+) (\w+)(?: (\w+))?\)")
_TYPE = re.compile(r"\b(?!(?:object|receptacle)type\b)(\w+)type\)")
_TASK = re.compile(r'"rhs": "Your task is to: ([^"\n]+)"')
_HELP = re.compile(r'action help \{.*?feedback :: "\n?(.*?)";', re.DOTALL)
_HELP_RULE = re.compile(r'"help\.feedback": \[\s*\{\s*"rhs": "((?:[^"\\]|\\.)*)"')
_ONE_ARGUMENT = frozenset({*OBJECT_FLAGS, "openable"})
_TWO_ARGUMENTS = frozenset(
    {
        "atlocation",
        "cancontain",
        "inreceptacle",
        "inreceptacleobject",
        "objectatlocation",
        "objecttype",
        "receptacleatlocation",
        "receptacletype",
    }
)
_IN = "(inreceptacle ?o ?r)"
_TYPES = "(objecttype ?o *) (receptacletype ?r *)"
_ONE_OBJECT = "(and (exists (?r - receptacle) (exists (?o - object) (and {}))))"
_GOALS = {
    _ONE_OBJECT.format(f"{_IN} {_TYPES}"): GOAL_KINDS[0],
    "(and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objecttype ?ot *) (toggleable ?ot) "
    "(istoggled ?ot) (receptacleatlocation ?r ?l) (atlocation ?a ?l) (inreceptacle ?ot ?r))) "
    "(exists (?o - object ?a - agent) (and (objecttype ?o *) (holds ?a ?o))))": GOAL_KINDS[1],
    _ONE_OBJECT.format(f"(cleanable ?o) {_TYPES} (isclean ?o) {_IN}"): GOAL_KINDS[2],
    _ONE_OBJECT.format(f"(heatable ?o) {_TYPES} (ishot ?o) {_IN}"): GOAL_KINDS[3],
    _ONE_OBJECT.format(f"(coolable ?o) {_TYPES} (iscool ?o) {_IN}"): GOAL_KINDS[4],
    "(and (exists (?r - receptacle) (exists (?o1 - object) (and (objecttype ?o1 *) (receptacletype ?r *) "
    "(inreceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2)) (objecttype ?o2 *) (receptacletype ?r *) "
    "(inreceptacle ?o2 ?r)))))))": GOAL_KINDS[5],
}
"""The six goals, spaces normalised and every type a star."""


class _GameFile(msgspec.Struct):
    pddl_domain: str
    grammar: str
    pddl_problem: str
    solvable: bool
    walkthrough: list[str]


_Result = TypeVar("_Result")
_DECODER = msgspec.json.Decoder(_GameFile)


class _Bad(Exception):
    """What is wrong with a game, without the file's name."""


class _Texts(NamedTuple):
    """The parts of a game file that its facts are read from."""

    init: str
    goal: Goal
    task: str
    help: str


def load_game(path: str | Path) -> Problem:
    """Return the game of a `game.tw-pddl` file; raises `UserError` naming the file and what is wrong with it."""
    return _read(path, _problem)


def check_game(path: str | Path) -> None:
    """Raise `UserError`, as `load_game` does, for what can be wrong with a game but its single facts; 3 × faster."""
    _read(path, _texts)


def _read(path: str | Path, convert: Callable[[_GameFile], _Result]) -> _Result:
    try:
        return convert(_DECODER.decode(Path(path).read_bytes()))
    except OSError as error:
        raise UserError(f"the game {path} cannot be read: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise UserError(f"the game {path} is not whole: {_lower_first(str(error))}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the game {path} is truncated or not JSON: {_lower_first(str(error))}") from error
    except _Bad as error:
        raise UserError(f"the game {path} is damaged: {error}") from error


def goal_text(goal: Goal) -> str:
    """Return a goal as it is written in PDDL, in lower case."""
    pattern = next(text for text, kind in _GOALS.items() if kind == goal.kind)
    first, second = goal.object_type, goal.target_type
    if goal.kind == "look_at_obj_in_light":
        first, second = second, first
    types = itertools.cycle((first, second))
    return re.sub(r"(?<= )\*\)", lambda _: f"{next(types)}type)", pattern)


def _lower_first(text: str) -> str:
    """Return a sentence as the rest of another; a name in capitals stays."""
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def _problem(game: _GameFile) -> Problem:
    texts = _texts(game)
    facts = _facts(texts.init)
    starts = facts["atlocation"]
    if len(starts) != 1:
        raise _Bad(f"its field `pddl_problem` has {len(starts)} facts `atLocation` instead of one")
    return Problem(
        receptacles=_receptacles(facts),
        items=_items(facts),
        in_receptacle=frozenset(facts["inreceptacle"]),
        in_object=frozenset(facts["inreceptacleobject"]),
        can_contain=_can_contain(tuple(facts["cancontain"])),
        start=starts[0][1],
        goal=texts.goal,
        task=texts.task,
        walkthrough=tuple(game.walkthrough),
        help=texts.help,
    )


def _texts(game: _GameFile) -> _Texts:
    if not game.solvable:
        raise _Bad("its field `solvable` is false")
    if not game.walkthrough:
        raise _Bad("its field `walkthrough` is empty")
    problem = game.pddl_problem.lower()
    _, found_init, rest = problem.partition("(:init")
    init, found_goal, goal = rest.partition("(:goal")
    for section, found in ((":init", found_init), (":goal", found_goal)):
        if not found:
            raise _Bad(f"its field `pddl_problem` has no section `{section}`")
    if problem.count("(") != problem.count(")"):
        raise _Bad("its field `pddl_problem` has parentheses that do not match")
    task, manual = _TASK.search(game.grammar), _HELP.search(game.grammar)
    if task is None or manual is None:
        missing = '"Your task is to: …"' if task is None else "`action help`"
        raise _Bad(f"its field `grammar` has no {missing}")
    return _Texts(init, _goal(goal), task[1], _shared_text(_help(game.grammar, manual[1])))


def _help(grammar: str, manual: str) -> str:
    """Return the answer to `help`: the text itself, or that of the rule which alfworld 0.4.2 writes in its place."""
    rule = _HELP_RULE.search(grammar) if manual == "#help.feedback#" else None
    return str(json.loads(f'"{rule[1]}"', strict=False)).removeprefix("\n") if rule else manual


def _facts(init: str) -> defaultdict[str, list[tuple[str, str]]]:
    """Return the argument pairs of each predicate; the second argument is empty where there is none."""
    facts: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    found = _FACT.findall(init)
    if len(found) != init.count("("):
        raise _Bad("its field `pddl_problem` has a fact in `:init` that is not of the form (predicate name [name])")
    for predicate, first, second in found:
        facts[predicate].append((first, second))
    for predicate, pairs in facts.items():
        known = _TWO_ARGUMENTS if pairs[0][1] else _ONE_ARGUMENT
        if predicate not in known or any(bool(second) != bool(pairs[0][1]) for _, second in pairs):
            raise _Bad(f"its field `pddl_problem` has a fact `{predicate}` that this engine does not know")
    return facts


def _receptacles(facts: defaultdict[str, list[tuple[str, str]]]) -> tuple[Receptacle, ...]:
    types, openable = dict(facts["receptacletype"]), {identifier for identifier, _ in facts["openable"]}
    places = dict(facts["receptacleatlocation"])
    named = {receptacle for _, receptacle in facts["inreceptacle"]} | openable | places.keys()
    for identifier in sorted(named - types.keys()) + sorted(types.keys() - places.keys()):
        lacks = "receptacleAtLocation" if identifier in types else "receptacleType"
        raise _Bad(f"its field `pddl_problem` has a receptacle {identifier} without a fact `{lacks}`")
    return tuple(
        Receptacle(identifier, _shared_text(types[identifier].removesuffix("type")), place, identifier in openable)
        for identifier, place in sorted(places.items())
    )


def _items(facts: defaultdict[str, list[tuple[str, str]]]) -> tuple[Item, ...]:
    types = dict(facts["objecttype"])
    locations: dict[str, list[str]] = {identifier: [] for identifier in types}
    for identifier, place in facts["objectatlocation"]:
        locations.setdefault(identifier, []).append(place)
    flags: defaultdict[str, list[str]] = defaultdict(list)
    for flag in OBJECT_FLAGS:
        for identifier, _ in facts[flag]:
            flags[identifier].append(flag)
    contained = {identifier for pair in facts["inreceptacleobject"] for identifier in pair}
    for identifier in {*flags, *contained, *(item for item, _ in facts["inreceptacle"])}:
        locations.setdefault(identifier, [])
    return tuple(
        Item(
            identifier,
            _shared_text(types.get(identifier, "").removesuffix("type")),
            tuple(sorted(set(places))) if len(places) > 1 else tuple(places),
            _flags(tuple(flags.get(identifier, ()))),
        )
        for identifier, places in sorted(locations.items())
    )


@lru_cache(maxsize=512)
def _flags(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(names)


@lru_cache(maxsize=512)
def _can_contain(pairs: tuple[tuple[str, str], ...]) -> frozenset[tuple[str, str]]:
    return frozenset((receptacle.removesuffix("type"), item.removesuffix("type")) for receptacle, item in pairs)


_shared_text: Callable[[str], str] = lru_cache(maxsize=1024)(str)
"""Return the one copy of a text that many games hold."""


def _goal(text: str) -> Goal:
    """Return the goal; `text` runs from after `(:goal` to the end of the problem."""
    flat = re.sub(r"\s+(?=\))", "", " ".join(text.split()))
    kind = _GOALS.get(_TYPE.sub("*)", flat.removesuffix("))")))
    if kind is None:
        raise _Bad("its field `pddl_problem` has a goal of none of the six known forms")
    types = _TYPE.findall(flat)
    if kind == "look_at_obj_in_light":
        return Goal(kind, object_type=types[1], target_type=types[0])
    if len(set(types[0::2])) > 1 or len(set(types[1::2])) > 1:
        raise _Bad("its field `pddl_problem` has a goal of none of the six known forms")
    return Goal(kind, object_type=types[0], target_type=types[1])
