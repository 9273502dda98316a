"""Any Gymnasium environment as a text world, given words for what it shows and for what can be done in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from envrl.envs.adapters.ended import ended
from envrl.errors import UserError
from envrl.types import Observation, Step, Task

if TYPE_CHECKING:
    import gymnasium


class TaskList(Protocol):
    """What a world needs to know of its tasks; `SeededTasks` is one."""

    def tasks(self, split: str) -> Sequence[Task]: ...

    def find(self, task: Task) -> Task: ...


def text_observation(env: gymnasium.Env[Any, Any], observation: Any, info: Mapping[str, Any]) -> str:
    """Return an observation that is a text already; raises `UserError` for any other."""
    if not isinstance(observation, str):
        kind = type(observation).__name__
        raise UserError(f"{env} gives observations of type {kind}: put them into words with Wording(describe=…)")
    return observation


def rewarded_end(reward: float, info: Mapping[str, Any]) -> bool:
    """Return whether an environment that has just terminated did so with a reward above 0."""
    return reward > 0


@dataclass(frozen=True, slots=True)
class Wording:
    """How an environment is put into words.

    `commands` maps each command's text to its action. `describe(env, observation, info)` is the text of an observation
    and `goal(env)` the task's sentence, which the first observation ends with; without it that observation stands as it
    is. `won(reward, info)` says of an episode that terminated whether that was success.
    """

    commands: Mapping[str, Any]
    describe: Callable[[gymnasium.Env[Any, Any], Any, Mapping[str, Any]], str] = text_observation
    goal: Callable[[gymnasium.Env[Any, Any]], str] | None = None
    won: Callable[[float, Mapping[str, Any]], bool] = rewarded_end
    truncation_ends: bool = True
    """False where the environment truncates for the length of an episode alone, and can be played on after that."""


class GymnasiumWorld:
    """A Gymnasium environment as a `TextEnv`: `open_env(task)` makes it anew for every episode.

    An episode's seed is its task's, so that a task fixes what chance does in it, too; the seed of `reset` changes
    nothing. An info with `action_mask` limits the admissible commands, as Gymnasium's own environments mean it.
    """

    def __init__(self, tasks: TaskList, open_env: Callable[[Task], gymnasium.Env[Any, Any]], wording: Wording) -> None:
        self._tasks = tasks
        self._open_env = open_env
        self._wording = wording
        self._env: gymnasium.Env[Any, Any] | None = None
        self._last = Step(Observation(""), 0.0, False, False)

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of a split in their fixed order; raises `UserError` for an unknown split."""
        return self._tasks.tasks(split)

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start a task anew; `seed` changes nothing. Raises `UserError` for an unknown task."""
        known = self._tasks.find(task)
        self.close()
        self._env = self._open_env(known)
        observation, info = self._env.reset(seed=known.seed)
        goal = self._wording.goal
        ending = f"\n\nYour task is to: {goal(self._env)}" if goal else ""
        self._last = Step(self._observed(self._env, observation, info, ending), 0.0, False, False)
        return self._last.observation

    def step(self, action: str) -> Step:
        """Carry out one command; after the end the last answer again, without reward.

        Raises `RuntimeError` before the first reset and `TypeError` for what is no text.
        """
        if self._env is None:
            raise RuntimeError("step was called before the first reset")
        if (again := ended(self._last, action)) is not None:
            return again
        command = action.strip()
        if command not in self._wording.commands:
            text = f"That is no command here. The commands are: {', '.join(self._wording.commands)}."
            return Step(Observation(text, self._last.observation.admissible), 0.0, False, False)
        self._last = self._carried_out(self._env, self._wording.commands[command])
        return self._last

    def close(self) -> None:
        """Close the environment of the present episode; the next `reset` opens another."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _carried_out(self, env: gymnasium.Env[Any, Any], action: Any) -> Step:
        observation, reward, terminated, truncated, info = env.step(action)
        gained = float(reward)
        done = bool(terminated or (truncated and self._wording.truncation_ends))
        success = bool(terminated and self._wording.won(gained, info))
        return Step(self._observed(env, observation, info), gained, done, success, {"truncated": bool(truncated)})

    def _observed(
        self, env: gymnasium.Env[Any, Any], observation: Any, info: Mapping[str, Any], ending: str = ""
    ) -> Observation:
        mask = info.get("action_mask")
        commands = self._wording.commands
        offered = tuple(text for text, action in commands.items() if mask is None or mask[action])
        return Observation(self._wording.describe(env, observation, info) + ending, offered)


class SavedGame(NamedTuple):
    """A copy of an environment in the midst of an episode, and its last answer."""

    env: Any
    last: Step


class SavableGymnasiumWorld(GymnasiumWorld):
    """A `GymnasiumWorld` over environments that `copy.deepcopy` copies whole, their random numbers included."""

    def save(self) -> SavedGame:
        """Return a copy of the present state, which later steps leave alone."""
        if self._env is None:
            raise RuntimeError("save was called before the first reset")
        return SavedGame(copy.deepcopy(self._env), self._last)

    def load(self, state: SavedGame) -> None:
        """Go back to a saved state, of this task or of another."""
        self.close()
        self._env, self._last = copy.deepcopy(state.env), state.last
