"""The world `sokoban`: boxes to push onto goals, in levels made by seed that can all be solved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta

from envrl.envs.adapters.extras import need
from envrl.envs.adapters.gymnasium_world import SavableGymnasiumWorld, Wording
from envrl.envs.adapters.seeded import SeededTasks
from envrl.envs.adapters.sokoban_levels import DIRECTIONS, make_level
from envrl.errors import UserError
from envrl.types import Task

COMMANDS = {f"go {direction}": action for action, direction in enumerate(DIRECTIONS)}
_GOAL = "push every box $ onto a goal point; you are @, a box on a goal is *, you on a goal are +, walls are #."


def sokoban(
    *,
    size: Annotated[int, Meta(ge=6, le=12)] = 7,  # rows and columns, walls included
    boxes: Annotated[int, Meta(ge=1, le=4)] = 2,  # boxes, and places for them
) -> Sokoban:
    """Return levels of `size` × `size` cells (6 to 12, walls included) with `boxes` boxes (1 to 4, at most size − 4).

    Raises `UserError` for other numbers, or where gymnasium is not installed.
    """
    for name, value, low, high in (("size", size, 6, 12), ("boxes", boxes, 1, min(4, size - 4))):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            where = f"the option '{name}' of the world 'sokoban'"
            raise UserError(f"{where} is a whole number from {low} to {high}, not {value}")
    need("gymnasium", "sokoban", "gymnasium")
    return Sokoban(size, boxes)


class Sokoban(SavableGymnasiumWorld):
    """Levels by reverse play; a level's rewards add up to 1 where it is solved, and no command is refused."""

    def __init__(self, size: int, boxes: int) -> None:
        def open_env(task: Task) -> Any:
            from envrl.envs.adapters.sokoban_env import SokobanEnv

            return SokobanEnv(size, boxes)

        wording = Wording(COMMANDS, _described, lambda env: _GOAL, won=lambda reward, info: True)
        super().__init__(SeededTasks("sokoban"), open_env, wording)
        self._size, self._boxes = size, boxes

    def walkthrough(self, task: Task) -> tuple[str, ...]:
        """Return commands that solve the level; not the fewest."""
        level = make_level(self._tasks.find(task).seed, self._size, self._boxes)
        return tuple(f"go {direction}" for direction in level.solution)


def _described(env: Any, observation: str, info: Mapping[str, Any]) -> str:
    return observation
