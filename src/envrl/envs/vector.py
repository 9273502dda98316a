"""Many episodes at once, each in its slot, and how they are played in this process.

A world that raises, or says what cannot be taken, is closed and made anew, and its episode is played again from the
same task and seed with the same commands. Worlds are deterministic, so the answers must be the same again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from envrl.envs.answers import BadAnswer, answer, close, first_observation, what_happened
from envrl.envs.protocol import TextEnv
from envrl.envs.registry import CannotMake
from envrl.errors import UserError
from envrl.types import Observation, Step, Task

ATTEMPTS_HERE = 2
"""How often an episode is begun in this process, where a world cannot die or hang for a reason that is not its own."""

OTHERWISE = "it answered otherwise when the episode was played again"


class Start(NamedTuple):
    """A task to be started in a slot."""

    slot: int
    task: Task
    seed: int


class VectorEnv(Protocol):
    """Many episodes, each in its slot; what they answer does not depend on how they are played.

    None stands for an episode whose task was set aside, since its world failed again and again.
    """

    replaced: int
    """Workers that were replaced."""
    set_aside: dict[str, str]
    """The ids of tasks that are no longer tried, and what happened at the last attempt."""

    def reset(self, starts: Sequence[Start]) -> list[Observation | None]:
        """Start tasks, each in a slot of its own, and return their first observations; what was there is given up."""
        ...

    def step(self, commands: Sequence[tuple[int, str]]) -> list[Step | None]:
        """Carry out one command in each of the given slots."""
        ...

    def finish(self) -> None:
        """Give up every episode, and what their worlds hold."""
        ...


@dataclass(slots=True)
class Episode:
    """What was said in a slot since its task was started, from which the episode can be played again."""

    task: Task
    seed: int
    commands: list[str] = field(default_factory=list)
    answers: list[Observation | Step] = field(default_factory=list)
    lost: bool = True
    failures: int = 0


class LocalWorlds:
    """Episodes in this process, a world of its own for each, closed when the episode is over; see `VectorEnv`."""

    replaced = 0

    def __init__(self, make_env: Callable[[], TextEnv]) -> None:
        self._make_env = make_env
        self._envs: dict[int, TextEnv] = {}
        self._episodes: dict[int, Episode] = {}
        self.set_aside: dict[str, str] = {}

    def reset(self, starts: Sequence[Start]) -> list[Observation | None]:
        """Start tasks; see `VectorEnv`."""
        for start in starts:
            self._close(start.slot)
            self._episodes[start.slot] = Episode(start.task, start.seed)
        answers = [self._answered(start.slot) for start in starts]
        return [found if isinstance(found, Observation) else None for found in answers]

    def step(self, commands: Sequence[tuple[int, str]]) -> list[Step | None]:
        """Carry out commands; see `VectorEnv`."""
        answers: list[Step | None] = []
        for slot, command in commands:
            self._episodes[slot].commands.append(command)
            found = self._answered(slot)
            answers.append(found if isinstance(found, Step) else None)
            if isinstance(found, Step) and found.done:
                self._close(slot)
        return answers

    def finish(self) -> None:
        """Close all worlds that are open."""
        for slot in list(self._envs):
            self._close(slot)
        self._episodes.clear()

    def _answered(self, slot: int) -> Observation | Step | None:
        """Return the answer to what was said last in a slot, None where its task was set aside."""
        episode = self._episodes[slot]
        while episode.task.id not in self.set_aside:
            try:
                return self._played(slot, episode)
            except CannotMake as error:
                self._fail(slot, episode, str(error))
            except UserError:
                raise
            except (Exception, SystemExit) as error:  # a world may raise anything, or end the process
                self._fail(slot, episode, what_happened(error))
        return None

    def _played(self, slot: int, episode: Episode) -> Observation | Step:
        """Carry out what has no answer yet, in a world made anew everything before it, too."""
        begun = 0 if episode.lost else len(episode.answers)
        if episode.lost:
            self._envs[slot] = self._make_env()
        env = self._envs[slot]
        for place in range(begun, 1 + len(episode.commands)):
            found = (
                answer(env, episode.commands[place - 1])
                if place
                else first_observation(env, episode.task, episode.seed)
            )
            if place == len(episode.answers):
                episode.answers.append(found)
            elif not same_answer(found, episode.answers[place]):
                raise BadAnswer(OTHERWISE)
        episode.lost, episode.failures = False, 0
        return episode.answers[-1]

    def _fail(self, slot: int, episode: Episode, reason: str) -> None:
        self._close(slot)
        episode.failures += 1
        if episode.failures >= ATTEMPTS_HERE:
            put_aside(self.set_aside, episode.task, ATTEMPTS_HERE, reason)

    def _close(self, slot: int) -> None:
        if slot in self._envs:
            self._episodes[slot].lost = True
            close(self._envs.pop(slot))


def put_aside(tasks: dict[str, str], task: Task, attempts: int, reason: str) -> None:
    if task.id not in tasks:
        tasks[task.id] = reason
        warnings.warn(f"set aside the task '{task.id}': its world failed {attempts} times, {reason}", stacklevel=2)


def same_answer(one: Observation | Step, other: Observation | Step) -> bool:
    """Return whether two answers say the same; `info` may hold anything, and is not compared."""
    if isinstance(one, Observation) or isinstance(other, Observation):
        return isinstance(one, Observation) and isinstance(other, Observation) and _said(one) == _said(other)
    ends = (one.reward, one.done, one.success), (other.reward, other.done, other.success)
    return ends[0] == ends[1] and _said(one.observation) == _said(other.observation)


def _said(observation: Observation) -> tuple[str, tuple[str, ...] | None]:
    return observation.text, observation.admissible
