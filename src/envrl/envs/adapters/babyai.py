"""The world `babyai`: levels of BabyAI (package minigrid), with what the agent sees put into words."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from envrl.envs.adapters.extras import imported, need
from envrl.envs.adapters.gymnasium_world import SavableGymnasiumWorld, Wording
from envrl.envs.adapters.seeded import SeededTasks
from envrl.errors import UserError, suggest
from envrl.types import Observation, Step, Task

if TYPE_CHECKING:
    import gymnasium

LEVELS = ("GoToLocal", "PickupLoc", "OpenDoor", "PutNextLocal", "UnlockLocal")
COMMANDS = {"turn left": 0, "turn right": 1, "go forward": 2, "pick up": 3, "drop": 4, "toggle": 5}
_WORDS = tuple(COMMANDS)
_LONGEST_WALKTHROUGH = 1_000


def babyai(
    *,
    levels: tuple[str, ...] = LEVELS,  # of BabyAI's, by name
) -> BabyAI:
    """Return BabyAI's levels, named as there without `BabyAI-` and `-v0`; a text names several with commas between.

    Raises `UserError` where minigrid is not installed, or for an unknown level (when a task of it is first played).
    """
    need("minigrid", "babyai", "minigrid")
    named = tuple(part.strip() for part in levels.split(",")) if isinstance(levels, str) else tuple(levels)
    if not all(named) or len(set(named)) < len(named) or not named:
        raise UserError(f"the option 'levels' of the world 'babyai' names levels, each once, not {levels!r}")
    return BabyAI(named)


class BabyAI(SavableGymnasiumWorld):
    """Rooms on a grid, of which the agent sees 7 cells ahead and 3 to each side.

    The reward is BabyAI's, 1 − 0.9 · steps / its limit at success; that limit itself ends no episode.
    """

    def __init__(self, levels: tuple[str, ...]) -> None:
        super().__init__(
            SeededTasks("babyai", kinds=levels),
            _open_level,
            Wording(COMMANDS, _described, lambda env: f"{_grid(env).mission}.", truncation_ends=False),
        )
        self._levels = levels
        self._last_action: int | None = None

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start a task anew; `seed` changes nothing. Raises `UserError` for an unknown task or level."""
        self._last_action = None
        with contextlib.redirect_stdout(io.StringIO()):  # levels print each draw that they reject
            return super().reset(task, seed)

    def expert(self, seed: int) -> Callable[[Observation], str]:
        """Return minigrid's own bot for the episode that this world plays next: it plans by what was seen so far."""
        bot: list[Any] = []
        advice: list[tuple[int, str]] = []

        def act(observation: Observation) -> str:
            grid = _grid(self._env)
            if advice and advice[-1][0] == grid.step_count:  # what was done since was no command
                return advice[-1][1]
            if not bot:
                bot.append(imported("minigrid.utils.baby_ai_bot", "babyai", "minigrid").BabyAIBot(grid))
            advice.append((grid.step_count, _advised(bot[0], self._last_action)))
            return advice[-1][1]

        return act

    def walkthrough(self, task: Task) -> tuple[str, ...]:
        """Return the bot's commands for a task; they win, save for rare tasks of large levels that it gives up."""
        commands: list[str] = []
        with contextlib.closing(BabyAI(self._levels)) as world:
            observation, script = world.reset(task), world.expert(0)
            while len(commands) < _LONGEST_WALKTHROUGH:
                commands.append(script(observation))
                step = world.step(commands[-1])
                observation = step.observation
                if step.done:
                    break
        return tuple(commands)

    def _carried_out(self, env: gymnasium.Env[Any, Any], action: Any) -> Step:
        self._last_action = action
        return super()._carried_out(env, action)


def _advised(bot: Any, last_action: int | None) -> str:
    """Return the bot's command; where it is at its wits' end (a box that it needed is gone) it turns on the spot."""
    try:
        action = int(bot.replan(last_action))
    except Exception as error:
        if not isinstance(error, AssertionError) and type(error).__name__ != "DisappearedBoxError":
            raise
        return _WORDS[0]
    return _WORDS[action] if action < len(_WORDS) else _WORDS[0]


def _grid(env: Any) -> Any:
    return env.unwrapped


def _open_level(task: Task) -> gymnasium.Env[Any, Any]:
    import gymnasium

    imported("minigrid", "babyai", "minigrid")  # registers the levels
    level = re.compile(r"BabyAI-(.+)-v\d+")
    known = {found[1]: name for name in gymnasium.registry if (found := level.fullmatch(name))}
    if task.kind not in known:
        raise UserError(f"the world 'babyai' has no level '{task.kind}'{suggest(task.kind, known)}")
    return gymnasium.make(known[task.kind], disable_env_checker=True)


def _described(env: gymnasium.Env[Any, Any], observation: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    from envrl.envs.adapters.babyai_view import view_text

    return view_text(observation["image"].tolist(), int(observation["direction"]))
