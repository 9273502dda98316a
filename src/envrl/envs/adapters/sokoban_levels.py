"""Sokoban levels by reverse play: boxes start on their goals and are pulled away, so that pushing back is a solution.

Everything is a pure function of the seed. Cells are numbers, row · size + column; the outermost cells are walls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, pairwise

from envrl.envs.household.draws import Draws

DIRECTIONS = ("up", "down", "left", "right")
_PULLS = 40  # a round of reverse play
_LONGEST_SOLUTION = 60
_FLOOR = 60  # percent of the inner cells, at least
_SAME_BOX = 60  # percent of the pulls that go on with the last box where it can be pulled


@dataclass(frozen=True, slots=True)
class Level:
    """Where everything is at the start, and moves (of `DIRECTIONS`) that push every box onto a goal."""

    size: int
    floor: frozenset[int]
    goals: frozenset[int]
    boxes: frozenset[int]
    player: int
    solution: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Pull:
    """A box at `cell` was pulled by `offset`: it lies at cell + offset, the player stands at cell + 2 · offset."""

    cell: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Moment:
    """A position of reverse play and the pulls that led there, without detours."""

    boxes: frozenset[int]
    region: frozenset[int]
    pulls: tuple[_Pull, ...]

    @property
    def merit(self) -> int:
        """How much there is to do: pushes, and twice as much for turning to another box or in another direction."""
        turns = sum(a.cell + a.offset != b.cell or a.offset != b.offset for a, b in pairwise(self.pulls))
        return len(self.pulls) + 2 * turns


def offsets(size: int) -> dict[str, int]:
    """Return what each direction adds to a cell's number."""
    return dict(zip(DIRECTIONS, (-size, size, -1, 1), strict=True))


@lru_cache(maxsize=1024)
def make_level(seed: int, size: int, boxes: int) -> Level:
    """Return the level of a seed: `size` × `size` cells, no box on a goal at the start."""
    for attempt in count():
        draws = Draws("sokoban", size, boxes, seed, attempt)
        floor = _carve(draws, size)
        goals = frozenset(_some(draws, floor, boxes))
        far = _play_backwards(draws, size, floor, goals)
        if far is None or far.merit < 4 * boxes:
            continue
        player = draws.one_of(sorted(far.region))
        solution = _pushed_back(size, floor, far, player)
        if len(solution) <= _LONGEST_SOLUTION:
            return Level(size, floor, goals, far.boxes, player, solution)
    raise AssertionError("attempts never end")


def _carve(draws: Draws, size: int) -> frozenset[int]:
    """Return connected floor: a walk through the inner cells that widens as it goes."""
    row, column = size // 2, size // 2
    floor = {row * size + column}
    while 100 * len(floor) < _FLOOR * (size - 2) ** 2:
        down, right = draws.one_of(((0, 1), (0, -1), (1, 0), (-1, 0)))
        row, column = min(max(row + down, 1), size - 2), min(max(column + right, 1), size - 2)
        floor.add(row * size + column)
    return frozenset(floor)


def _some(draws: Draws, cells: Set[int], number: int) -> list[int]:
    left = sorted(cells)
    return [left.pop(draws.below(len(left))) for _ in range(number)]


def _play_backwards(draws: Draws, size: int, floor: frozenset[int], goals: frozenset[int]) -> _Moment | None:
    """Return the moment of most merit in a round of random pulls with no box on a goal, None where there is none."""
    start = draws.one_of(sorted(floor - goals))
    now = _Moment(goals, _reach(size, floor - goals, start), ())
    known: dict[tuple[frozenset[int], int], _Moment] = {}
    best: _Moment | None = None
    for _ in range(_PULLS):
        now = known.setdefault((now.boxes, min(now.region)), now)  # a detour is forgotten
        if not now.boxes & goals and (best is None or now.merit > best.merit):
            best = now
        free = floor - now.boxes
        pulls = [
            _Pull(cell, offset)
            for cell in sorted(now.boxes)
            for offset in offsets(size).values()
            if cell + offset in now.region and cell + 2 * offset in free
        ]
        if not pulls:
            break
        last = now.pulls[-1].cell + now.pulls[-1].offset if now.pulls else -1
        same = [pull for pull in pulls if pull.cell == last]
        pull = draws.one_of(same if same and draws.chance(_SAME_BOX) else pulls)
        boxes = now.boxes - {pull.cell} | {pull.cell + pull.offset}
        region = _reach(size, floor - boxes, pull.cell + 2 * pull.offset)
        now = _Moment(boxes, region, (*now.pulls, pull))
    return best


def _reach(size: int, free: Set[int], start: int) -> frozenset[int]:
    return frozenset(_ways(size, free, start))


def _ways(size: int, free: Set[int], start: int) -> dict[int, tuple[str, ...]]:
    """Return a shortest way on foot to each cell within reach."""
    ways: dict[int, tuple[str, ...]] = {start: ()}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        for direction, offset in offsets(size).items():
            if here + offset in free and here + offset not in ways:
                ways[here + offset] = (*ways[here], direction)
                queue.append(here + offset)
    return ways


def _pushed_back(size: int, floor: frozenset[int], far: _Moment, player: int) -> tuple[str, ...]:
    """Return the moves that undo the pulls, last one first."""
    names = {-offset: direction for direction, offset in offsets(size).items()}
    boxes, solution = far.boxes, ()
    for pull in reversed(far.pulls):
        lies = pull.cell + pull.offset
        way = _ways(size, floor - boxes, player)[lies + pull.offset]
        solution += (*way, names[pull.offset])
        boxes, player = boxes - {lies} | {pull.cell}, lies
    return solution
