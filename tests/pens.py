"""ALFWorld games written by hand, so small that tests can make folders and archives of them."""

from __future__ import annotations

import json
from pathlib import Path

_FACTS = """
(atLocation agent1 loc_start) (receptacleType desk_bar_1 DeskType) (receptacleAtLocation desk_bar_1 loc_a)
(receptacleType shelf_bar_1 ShelfType) (receptacleAtLocation shelf_bar_1 loc_b) (canContain ShelfType PenType)
(canContain DeskType PenType) (objectType pen_bar_1 PenType) (objectAtLocation pen_bar_1 loc_a) (pickupable pen_bar_1)
(inReceptacle pen_bar_1 desk_bar_1)
"""
_GOAL = (
    "(and (exists (?r - receptacle) (exists (?o - object) (and (inReceptacle ?o ?r) (objectType ?o PenType) "
    "(receptacleType ?r ShelfType)))))"
)


def game(label: str = "a") -> str:
    """Return the text of a `game.tw-pddl`: put a pen on a shelf; `label` makes it another file."""
    return json.dumps(
        {
            "pddl_domain": "(define (domain alfred))",
            "grammar": 'grammar :: """{"intro": [{"rhs": "Your task is to: put some pen on shelf."}]}"""\n'
            'action help { feedback :: "\nCommands are listed."; }',
            "pddl_problem": f"(define (problem {label}) (:domain alfred) (:init {_FACTS}) (:goal {_GOAL}))",
            "solvable": True,
            "walkthrough": ["go to desk 1", "take pen 1 from desk 1", "go to shelf 1", "move pen 1 to shelf 1"],
        }
    )


def name(split: str, number: int) -> str:
    return f"json_2.1.1/{split}/pick_and_place_simple-Pen-None-Shelf-{number}/trial_{number}/game.tw-pddl"


def games(counts: dict[str, int], label: str = "a") -> dict[str, str]:
    """Return so many games of each split, by their path."""
    return {name(split, n): game(f"{label}{n}") for split, count in counts.items() for n in range(count)}


def write(folder: Path, texts: dict[str, str]) -> Path:
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder
