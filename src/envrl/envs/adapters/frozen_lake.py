"""The world `frozenlake`: Gymnasium's FrozenLake on maps drawn by seed, the whole lake in sight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from envrl.envs.adapters.extras import imported, need
from envrl.envs.adapters.gymnasium_world import SavableGymnasiumWorld, Wording
from envrl.envs.adapters.seeded import SeededTasks
from envrl.errors import UserError
from envrl.types import Observation, Task

if TYPE_CHECKING:
    import gymnasium

COMMANDS = {"go left": 0, "go down": 1, "go right": 2, "go up": 3}
_MOVES = {"go left": (0, -1), "go down": (1, 0), "go right": (0, 1), "go up": (-1, 0)}
_LARGEST = 32


def frozen_lake(
    *,
    size: Annotated[int, Meta(ge=4, le=_LARGEST)] = 8,  # rows and columns of a map
    slippery: bool = False,  # a step may slide to either side
) -> FrozenLake:
    """Return lakes of `size` × `size` tiles (4 to 32); `slippery`: a step goes astray two times in three.

    Below 8 the splits may share maps, since there are few. Raises `UserError` where gymnasium is not installed.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 4 <= size <= _LARGEST:
        raise UserError(
            f"the option 'size' of the world 'frozenlake' is a whole number from 4 to {_LARGEST}, not {size}"
        )
    need("gymnasium", "frozenlake", "gymnasium")
    return FrozenLake(size, slippery)


class FrozenLake(SavableGymnasiumWorld):
    """Cross a lake from its upper left to its lower right corner; reward 1 there, and a hole ends the episode."""

    def __init__(self, size: int, slippery: bool) -> None:
        def open_env(task: Task) -> gymnasium.Env[Any, Any]:
            lake = imported("gymnasium.envs.toy_text.frozen_lake", "frozenlake", "gymnasium")
            rows = lake.generate_random_map(size=size, seed=task.seed)
            return lake.FrozenLakeEnv(desc=rows, is_slippery=slippery)

        goal = f"reach the goal G without stepping into a hole H{'; the ice is slippery' if slippery else ''}."
        wording = Wording(COMMANDS, _described, lambda env: goal)
        super().__init__(SeededTasks("frozenlake"), open_env, wording)

    def expert(self, seed: int) -> Callable[[Observation], str]:
        """Return a player that takes a shortest way around the holes, as if the ice were not slippery."""
        return lambda observation: _next_step(observation.text)


def _described(env: Any, observation: int, info: Mapping[str, Any]) -> str:
    rows = [[tile.decode() for tile in row] for row in env.unwrapped.desc]
    row, column = divmod(observation, len(rows[0]))
    ground = {"H": "You fell into a hole.", "G": "You are at the goal."}.get(rows[row][column], "You stand on the ice.")
    rows[row][column] = "@"
    drawn = "\n".join("".join(line) for line in rows)
    return f"{ground} Row {row + 1}, column {column + 1}.\n\n{drawn}"


def _next_step(text: str) -> str:
    """Return the first command of a shortest way from @ to G on the drawn map; "go right" where there is none."""
    rows = [line for line in text.splitlines() if line and set(line) <= set("SFHG@")]
    tiles = {(r, c): tile for r, row in enumerate(rows) for c, tile in enumerate(row)}
    start = next(place for place, tile in tiles.items() if tile == "@")
    first: dict[tuple[int, int], str] = {start: ""}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        if tiles[here] == "G":
            return first[here]
        for command, (down, right) in _MOVES.items():
            there = here[0] + down, here[1] + right
            if there not in first and tiles.get(there, "H") != "H":
                first[there] = first[here] or command
                queue.append(there)
    return "go right"
