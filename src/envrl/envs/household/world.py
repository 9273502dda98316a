"""The worlds `alfworld` and `household`: one engine, two collections of games."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from envrl.envs.household.engine import Play, State
from envrl.envs.household.problem import Problem
from envrl.envs.household.sources import GameFiles, GeneratedGames, Source
from envrl.types import Observation, Step, Task

_PRIOR_GAMES = 400


def alfworld(data: str = "") -> Alfworld:
    """Return ALFWorld's own games, splits train, valid_seen, valid_unseen and valid_train.

    `data` is the folder that holds json_2.1.1, or that folder itself; empty: $ALFWORLD_DATA, else where
    `envrl data get alfworld` puts it. Nothing is read until tasks are listed or played; `UserError` is raised then
    where there is no such folder, or no game in it.
    """
    return Alfworld(GameFiles(data or ""))


def household() -> Household:
    """Return the world of generated games, with the splits of `alfworld`; only valid_unseen has rooms of its own."""
    return Household(GeneratedGames())


class SavedPlay(NamedTuple):
    """A household world's state as plain values, for any world over the same games."""

    task: Task
    state: State


class Household:
    """Household text games, played one at a time; see `TextEnv` for the methods."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._tasks: dict[str, Sequence[Task]] = {}
        self._task = Task("", "")
        self._play: Play | None = None
        self.skipped = 0
        """Damaged games that were left out of the splits listed so far."""

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of a split, sorted by id; a damaged game is left out with a warning and counted."""
        if split not in self._tasks:
            self._tasks[split], skipped = self._source.tasks(split)
            self.skipped += skipped
        return self._tasks[split]

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start a game; `seed` changes nothing, since games are fixed. Raises `UserError` for a damaged game."""
        self._play = Play(self._source.game(task))
        self._task = task
        answer = self._play.answer()
        return Observation(answer.text, answer.admissible)

    def step(self, action: str) -> Step:
        """Carry out one command; reward 1 when the task is done, and the last answer for ever after."""
        if self._play is None:
            raise RuntimeError("step was called before the first reset")
        text, admissible, done = self._play.step(action)
        return Step(Observation(text, admissible), 1.0 if done else 0.0, done, done)

    def save(self) -> SavedPlay:
        """Return the present state: plain values, picklable, and of use to any world over the same games."""
        if self._play is None:
            raise RuntimeError("save was called before the first reset")
        return SavedPlay(self._task, self._play.save())

    def load(self, state: SavedPlay) -> None:
        """Go back to a saved state, of this game or of another."""
        if self._play is None or self._task != state.task:
            self._play = Play(self._source.game(state.task))
            self._task = state.task
        self._play.load(state.state)

    def subgoals(self) -> frozenset[str]:
        """Return what of the goal holds at this moment (see `Play.subgoals`); nothing before the first reset."""
        return self._play.subgoals() if self._play else frozenset()

    def problem(self, task: Task) -> Problem:
        """Return a task's facts, walkthrough included."""
        return self._source.game(task).problem

    def contents(self, tasks: Sequence[Task]) -> Iterator[Problem]:
        """Yield each game's facts, whatever else its file holds."""
        return map(self.problem, tasks)

    def walkthrough(self, task: Task) -> tuple[str, ...]:
        """Return commands that win the game at the last of them."""
        return self.problem(task).walkthrough

    def expert(self, seed: int) -> Callable[[Observation], str]:
        """Return a scripted player for one episode: it uses what it sees, and where things lie in training games."""
        from envrl.envs.household.expert import Expert

        return Expert(_placement_prior(self._source.key)).start(seed).act


class Alfworld(Household):
    """The household world on downloaded games."""

    def __init__(self, files: GameFiles) -> None:
        super().__init__(files)
        self._files = files

    def fingerprint(self, split: str) -> str:
        """Return a SHA-256 over the content of all games of a split."""
        return self._files.fingerprint(split)


@lru_cache(maxsize=4)
def _placement_prior(key: str) -> dict[str, dict[str, float]]:
    """Return where things lie in up to 400 training games, evenly spaced; `key` is a source's."""
    from envrl.envs.household.expert import placement_prior

    source = GeneratedGames() if key == GeneratedGames.key else GameFiles(key)
    tasks, _ = source.tasks("train")
    return placement_prior(source.problem(task) for task in tasks[:: -(-len(tasks) // _PRIOR_GAMES)])
