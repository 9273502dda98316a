"""The world `textworld`: games that TextWorld's own generator makes by seed, played by its own engine."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

from envrl.envs.adapters.ended import ended
from envrl.envs.adapters.extras import imported, need
from envrl.envs.adapters.seeded import SeededTasks
from envrl.envs.adapters.textworld_games import CHALLENGES, game_file
from envrl.errors import UserError, suggest
from envrl.types import Observation, Step, Task

SPLITS = (("train", 1_000), ("valid", 100), ("test", 100))
_STATUS = re.compile(r"\n+> +-= .* =- *-?\d+/\d+\s*\Z")
"""The interpreter's status bar: prompt, room, score and moves."""
_LONGEST_COMMAND = 200  # characters; the interpreter reads into a buffer of fixed size


def textworld(
    *,
    challenges: tuple[str, ...] = tuple(CHALLENGES),  # of TextWorld's own, by name
) -> TextWorld:
    """Return games of TextWorld's challenges coin_collector, treasure_hunter and cooking, or of some of them.

    A text names several with commas between. Raises `UserError` where textworld is not installed, or for an unknown
    challenge.
    """
    named = tuple(part.strip() for part in challenges.split(",")) if isinstance(challenges, str) else tuple(challenges)
    for name in named:
        if name not in CHALLENGES:
            raise UserError(f"the world 'textworld' has no challenge '{name}'{suggest(name, CHALLENGES)}")
    if not named or len(set(named)) < len(named):
        raise UserError(f"the option 'challenges' of the world 'textworld' names each once, not {challenges!r}")
    need("textworld", "textworld", "textworld")
    return TextWorld(named)


class TextWorld:
    """TextWorld's games; the reward is the share of the highest score that a step brings. See `TextEnv`."""

    slow = True
    """By default it is played in worker processes."""

    def __init__(self, challenges: tuple[str, ...]) -> None:
        self._tasks = SeededTasks("textworld", SPLITS, challenges)
        self._game: Any = None
        self._score = 0
        self._last = Step(Observation(""), 0.0, False, False)

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of a split, the challenges in turn; raises `UserError` for an unknown split."""
        return self._tasks.tasks(split)

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start a game, which is built where it is not in the cache; `seed` changes nothing.

        Raises `UserError` for an unknown task or a cache that cannot be written, `RunError` where no game can be built.
        """
        file = game_file(self._tasks.find(task))
        package = imported("textworld", "textworld", "textworld")
        self.close()
        wanted = ("admissible_commands", "feedback", "lost", "max_score", "objective", "score", "won")
        with warnings.catch_warnings(action="ignore"):  # each start says that the interpreter keeps no score itself
            self._game = package.start(str(file), package.EnvInfos(**dict.fromkeys(wanted, True)))
        self._game.seed(0)
        state = self._game.reset()
        self._score = state.score
        objective = state.objective.strip()
        said = _STATUS.sub("", state.feedback)
        _, _, room = said.partition(objective)  # before it stands the title, drawn in characters
        text = f"{(room or said).strip()}\n\nYour task is to: {' '.join(objective.split())}"
        self._last = Step(Observation(text, _commands(state)), 0.0, False, False)
        return self._last.observation

    def step(self, action: str) -> Step:
        """Carry out one command; after the end the last answer again, without reward.

        Raises `RuntimeError` before the first reset and `TypeError` for what is no text.
        """
        if self._game is None:
            raise RuntimeError("step was called before the first reset")
        if (again := ended(self._last, action)) is not None:
            return again
        command = re.sub(r"[^ -~]+|\\+", " ", action[: _LONGEST_COMMAND + 1]).strip()
        if not command or len(action) > _LONGEST_COMMAND:
            text = "That's not a command." if not command else "That's too long for a command."
            return Step(Observation(text, self._last.observation.admissible), 0.0, False, False)
        state, _, done = self._game.step(command)
        gained, self._score = (state.score - self._score) / state.max_score, state.score
        text = _STATUS.sub("", state.feedback).strip() or "Nothing happens."
        self._last = Step(
            Observation(text, _commands(state)), gained, bool(done), bool(state.won), {"score": state.score}
        )
        return self._last

    def close(self) -> None:
        """End the interpreter of the present game; the next `reset` starts another."""
        game, self._game = self._game, None
        if game is not None:
            game.close()

    def walkthrough(self, task: Task) -> tuple[str, ...]:
        """Return the generator's own solution; the game is built where it is not in the cache."""
        package = imported("textworld.generator.game", "textworld", "textworld")
        game = package.Game.load(str(game_file(self._tasks.find(task)).with_suffix(".json")))
        return tuple(game.metadata["walkthrough"])


def _commands(state: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(state.admissible_commands))
