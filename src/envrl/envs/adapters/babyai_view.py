"""What an agent of minigrid sees, in words."""

from __future__ import annotations

from collections.abc import Sequence

from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

_KINDS = {number: name for name, number in OBJECT_TO_IDX.items()}
_COLOURS = {number: name for name, number in COLOR_TO_IDX.items()}
_STATES = {number: name for name, number in STATE_TO_IDX.items()}
_COMPASS = ("east", "south", "west", "north")
_NAMED = ("door", "key", "ball", "box")
_SIDES = ("ahead", "to the left", "to the right")

Cell = Sequence[int]
"""Kind, colour and state, by minigrid's numbers."""


def view_text(image: Sequence[Sequence[Cell]], direction: int) -> str:
    """Return the text of a view: direction and what is carried, then a line for each thing, near ones first, and walls.

    `image[column][row]` is a cell; the agent stands in the middle of the last row and looks towards row 0.
    """
    middle, last = len(image) // 2, len(image[0]) - 1
    held = image[middle][last]
    carried = f" You carry {_name(held)}." if _KINDS[held[0]] in _NAMED else ""
    things = sorted(
        (last - row + abs(column - middle), last - row, column - middle, _name(cell))
        for column, cells in enumerate(image)
        for row, cell in enumerate(cells)
        if _KINDS[cell[0]] in _NAMED and (column, row) != (middle, last)
    )
    lines = [f"{name[0].upper()}{name[1:]} is {_where(ahead, right)}." for _, ahead, right, name in things]
    rays = (image[middle][-2::-1], [c[last] for c in image[middle - 1 :: -1]], [c[last] for c in image[middle + 1 :]])
    for ray, side in zip(rays, _SIDES, strict=True):
        distance = next((n for n, cell in enumerate(ray, 1) if _KINDS[cell[0]] == "wall"), 0)
        lines += [f"A wall is {_steps(distance)} {side}."] if distance else []
    return "\n".join([f"You face {_COMPASS[direction]}.{carried}", *lines])


def _name(cell: Cell) -> str:
    kind, colour, state = _KINDS[cell[0]], _COLOURS[cell[1]], _STATES.get(cell[2], "")
    words = f"{state} {colour} {kind}" if kind == "door" else f"{colour} {kind}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _where(ahead: int, right: int) -> str:
    side = "to the right" if right > 0 else "to the left"
    if not right:
        return f"{_steps(ahead)} ahead"
    return f"{_steps(ahead)} ahead and {abs(right)} {side}" if ahead else f"{_steps(abs(right))} {side}"


def _steps(count: int) -> str:
    return f"{count} step{'s' if count > 1 else ''}"
