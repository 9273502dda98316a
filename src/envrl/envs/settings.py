"""Settings of any world: irrelevant lines, a hidden list of commands, actions that fail, other rewards.

They wrap a world and leave it as it is. What is drawn is a pure function of (task, seed, turn), so that an episode of
the same commands is the same again, whatever was played before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from envrl.envs.answers import answer, first_observation
from envrl.envs.household.draws import Draws
from envrl.envs.protocol import HasSubgoals, SavableEnv, TextEnv
from envrl.errors import UserError
from envrl.types import Observation, Step, Task

FAILED = "It does not work this time, and everything is as before."
"""The answer to an action that `failing_actions` let fail."""

DISTRACTORS = (
    "A clock ticks somewhere.",
    "A dog barks in the distance.",
    "A door slams next door.",
    "A draught moves the curtains.",
    "A fly circles under the ceiling.",
    "A drill whirs at the neighbours'.",
    "A moth rests on the wallpaper.",
    "A neighbour is practising the piano.",
    "A pipe gurgles behind the wall.",
    "A plane passes overhead.",
    "A radio plays quietly in another house.",
    "A shadow glides over the wall.",
    "A siren can be heard far away.",
    "A train rumbles by.",
    "A window rattles in the wind.",
    "Children are laughing outside.",
    "Dust dances in a ray of light.",
    "It begins to rain.",
    "It has become a little colder.",
    "It smells of fresh paint.",
    "It smells of rain.",
    "Leaves rustle in front of the house.",
    "Light falls through the blinds in stripes.",
    "Someone coughs on the stairs.",
    "Someone is mowing a lawn down the street.",
    "Someone walks about upstairs.",
    "The air is stuffy.",
    "The bells of a church strike the hour.",
    "The bulb overhead flickers for a moment.",
    "The floor creaks.",
    "The paint on the window frame is peeling.",
    "The pattern of the wallpaper repeats itself.",
    "The postman rings at another door.",
    "The sun comes out from behind a cloud.",
    "The wall has a crack the shape of a river.",
    "The wind has turned.",
    "There is a faint hum in the air.",
    "There is a scratch in the varnish of the floor.",
    "Thunder rolls far away.",
    "Two pigeons coo on the sill.",
)
"""What irrelevant lines are drawn from: nothing in them names a thing that a task could be about."""


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """What is set on a world; the defaults change nothing, and the keys are those of the recipe's `env`."""

    distractors: int = 0
    hide_admissible: bool = False
    failing_actions: float = 0.0
    step_cost: float = 0.0
    subgoal_reward: float = 0.0


class _Moment(NamedTuple):
    """Where an episode stands, apart from the world's own state."""

    task: Task
    seed: int
    turn: int
    plain: Observation  # the world's own last observation
    done: bool
    reached: frozenset[str]  # sub-goals that have been paid for, or held from the start


def with_settings(env: TextEnv, settings: WorldSettings) -> TextEnv:
    """Return the world with the settings applied: itself where they change nothing.

    The result has `save` and `load`, `walkthrough`, `expert`, `subgoals`, `fingerprint`, `contents` and `close` where
    `env` does.
    Its expert sees what the world itself says; its walkthrough repeats what fails, for episodes reset with `task.seed`.
    Raises `UserError` for settings out of range, and where sub-goals are to be paid in a world that names none.
    """
    if settings == WorldSettings():
        return env
    if not 0 <= settings.distractors <= len(DISTRACTORS):
        raise UserError(f"distractors must be a whole number from 0 to {len(DISTRACTORS)}, not {settings.distractors}")
    if not 0.0 <= settings.failing_actions < 1.0:
        raise UserError(f"failing_actions must be at least 0 and below 1, not {settings.failing_actions:g}")
    if settings.subgoal_reward and not isinstance(env, HasSubgoals):
        raise UserError("env.subgoal_reward pays for sub-goals, and this world names none: leave it at 0")
    return SetWorld(env, settings)


def set_maker(make_env: Callable[[], TextEnv], settings: WorldSettings) -> Callable[[], TextEnv]:
    """Return a function that makes the world with the settings applied, picklable where `make_env` is."""
    return partial(_set, make_env, settings)


def _set(make_env: Callable[[], TextEnv], settings: WorldSettings) -> TextEnv:
    return with_settings(make_env(), settings)


class SetWorld:
    """A world with settings; see `TextEnv` for the methods, `inner` for the world itself."""

    def __init__(self, inner: TextEnv, settings: WorldSettings) -> None:
        self.inner, self.settings = inner, settings
        self._now: _Moment | None = None
        for name in ("subgoals", "fingerprint", "contents", "slow", "close"):
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))
        # Set on the instance, so that a world that offers none of them is not taken for one that does.
        if isinstance(inner, SavableEnv):
            self.save, self.load = self._save, self._load
        if hasattr(inner, "walkthrough"):
            self.walkthrough = self._walkthrough
        if hasattr(inner, "expert"):
            self.expert = self._expert

    def tasks(self, split: str) -> Sequence[Task]:
        return self.inner.tasks(split)

    def reset(self, task: Task, seed: int = 0) -> Observation:
        plain = first_observation(self.inner, task, seed)
        self._now = _Moment(task, seed, 0, plain, False, self._reached())
        return self._shown(plain, self._now)

    def step(self, action: str) -> Step:
        """Carry out one command, unless it fails; a command that is not among the listed ones never does."""
        now = self._now
        if now is None:
            raise RuntimeError("step was called before the first reset")
        turn = now.turn if now.done else now.turn + 1
        if not now.done and now.plain.accepts(action.strip()) and self._fails(now.task, now.seed, turn):
            self._now = now = now._replace(turn=turn)
            plain = replace(now.plain, text=FAILED)
            return Step(self._shown(plain, now, failed=True), -self.settings.step_cost, False, False)
        step = answer(self.inner, action)
        reached = now.reached | self._reached()
        pay = self.settings.subgoal_reward * len(reached - now.reached)
        self._now = now._replace(turn=turn, plain=step.observation, done=step.done, reached=reached)
        reward = step.reward + pay - self.settings.step_cost
        return replace(step, observation=self._shown(step.observation, self._now), reward=reward)

    def _save(self) -> tuple[Any, _Moment]:
        if self._now is None:
            raise RuntimeError("save was called before the first reset")
        assert isinstance(self.inner, SavableEnv)
        return self.inner.save(), self._now

    def _load(self, state: tuple[Any, _Moment]) -> None:
        assert isinstance(self.inner, SavableEnv)
        inner, self._now = state
        self.inner.load(inner)

    def _walkthrough(self, task: Task) -> tuple[str, ...]:
        commands: list[str] = []
        for command in getattr(self.inner, "walkthrough")(task):  # noqa: B009 - optional in a world
            while self._fails(task, task.seed, len(commands) + 1):
                commands.append(command)
            commands.append(command)
        return tuple(commands)

    def _expert(self, seed: int) -> Callable[[Observation], str]:
        script: Callable[[Observation], str] = getattr(self.inner, "expert")(seed)  # noqa: B009 - optional in a world
        last = ""

        def act(observation: Observation) -> str:
            nonlocal last
            if not observation.info.get("failed"):  # after a failure everything is as before: so is what to do
                last = script(observation.info["plain"])
            return last

        return act

    def _reached(self) -> frozenset[str]:
        return self.inner.subgoals() if isinstance(self.inner, HasSubgoals) else frozenset()

    def _fails(self, task: Task, seed: int, turn: int) -> bool:
        chance = self.settings.failing_actions
        return chance > 0.0 and Draws("failing", task.id, seed, turn).chance(100 * chance)

    def _shown(self, plain: Observation, now: _Moment, *, failed: bool = False) -> Observation:
        """Return an observation as the player sees it; `info` keeps the world's own for scripts."""
        text, hidden = plain.text, self.settings.hide_admissible
        if self.settings.distractors:
            draws = Draws("distractors", now.task.id, now.seed, now.turn)
            text = "\n".join([text, *_drawn(DISTRACTORS, self.settings.distractors, draws)])
        return replace(
            plain,
            text=text,
            admissible=None if hidden else plain.admissible,
            templates=() if hidden else plain.templates,
            info={**plain.info, "plain": plain, "failed": failed},
        )


def _drawn(pool: Sequence[str], count: int, draws: Draws) -> list[str]:
    """Return `count` different ones of the pool."""
    left = list(pool)
    return [left.pop(draws.below(len(left))) for _ in range(count)]
