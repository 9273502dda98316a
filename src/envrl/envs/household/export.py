"""Household games as `game.tw-pddl` files, which the original engine plays; the rules come from its own package."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from envrl.envs.household.pddl import goal_text
from envrl.envs.household.problem import Problem
from envrl.errors import UserError

INSTALL = "pip install 'envrl[alfworld-textworld]'"
_AGENT = "agent1"
_DOMAIN_TYPE = re.compile(r"\((receptacletype|objecttype) \?\w+ (\w+type)\)")
_COMMENT = re.compile(";.*")
_UNKNOWN_TASK = "UNKNOWN GOAL."


def export_game(problem: Problem, path: str | Path) -> None:
    """Write a game as a `game.tw-pddl` file; raises `UserError` where the package `alfworld` is not installed."""
    document = json.dumps(game_document(problem))
    try:
        Path(path).write_text(document, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the game file {path} cannot be written: {error.strerror}") from error


def game_document(problem: Problem) -> dict[str, Any]:
    """Return the content of a `game.tw-pddl` file; domain and grammar are those of the installed `alfworld`."""
    domain, grammar = _rules()
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace(_UNKNOWN_TASK, problem.task),
        "pddl_problem": pddl_problem(problem, domain),
        "solvable": True,
        "walkthrough": list(problem.walkthrough),
    }


def pddl_problem(problem: Problem, domain: str) -> str:
    """Return the problem in PDDL; constants that the domain's rules name are declared, whether the game has them."""
    objects: defaultdict[str, set[str]] = defaultdict(set)
    objects["agent"] = {_AGENT}
    objects["location"] = {problem.start, *(receptacle.location for receptacle in problem.receptacles)}
    for predicate, name in _DOMAIN_TYPE.findall(_COMMENT.sub("", domain).lower()):
        objects["rtype" if predicate == "receptacletype" else "otype"].add(name)
    for receptacle in problem.receptacles:
        objects["receptacle"].add(receptacle.id)
        objects["rtype"].add(f"{receptacle.type}type")
    for item in problem.items:
        objects["object"].add(item.id)
        objects["location"].update(item.locations)
        if item.type:
            objects["otype"].add(f"{item.type}type")
    for receptacle_type, item_type in problem.can_contain:
        objects["rtype"].add(f"{receptacle_type}type")
        objects["otype"].add(f"{item_type}type")
    declared = [f"  {name} - {kind}" for kind in sorted(objects) for name in sorted(objects[kind])]
    facts = [f"  ({' '.join(fact)})" for fact in _facts(problem)]
    sections = ["(define (problem household)", "(:domain alfred)", "(:objects", *declared, ")", "(:init", *facts, ")"]
    return "\n".join([*sections, f"(:goal {goal_text(problem.goal)})", ")", ""])


def _facts(problem: Problem) -> Iterator[tuple[str, ...]]:
    yield "atlocation", _AGENT, problem.start
    for receptacle in problem.receptacles:
        yield "receptacletype", receptacle.id, f"{receptacle.type}type"
        yield "receptacleatlocation", receptacle.id, receptacle.location
        if receptacle.openable:
            yield "openable", receptacle.id
    for item in problem.items:
        if item.type:
            yield "objecttype", item.id, f"{item.type}type"
        for location in item.locations:
            yield "objectatlocation", item.id, location
        for flag in sorted(item.flags):
            yield flag, item.id
    for item, receptacle in sorted(problem.in_receptacle):
        yield "inreceptacle", item, receptacle
    for inner, outer in sorted(problem.in_object):
        yield "inreceptacleobject", inner, outer
    for receptacle_type, item_type in sorted(problem.can_contain):
        yield "cancontain", f"{receptacle_type}type", f"{item_type}type"


@cache
def _rules() -> tuple[str, str]:
    """Return the domain and the grammar of the installed `alfworld`; found, not imported, which makes folders."""
    found = importlib.util.find_spec("alfworld")
    if found is None or not found.submodule_search_locations:
        raise UserError(f"the rules of ALFWorld's games come with the package alfworld; get it with `{INSTALL}`")
    folder = Path(found.submodule_search_locations[0]) / "data"
    domain, grammar = ((folder / name).read_text(encoding="utf-8") for name in ("alfred.pddl", "alfred.twl2"))
    if _UNKNOWN_TASK not in grammar:
        raise UserError(f"the grammar in {folder} is not that of alfworld 0.4; get it with `{INSTALL}`")
    return domain, grammar
