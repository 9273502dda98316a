"""The world `scienceworld`: the 30 tasks of ScienceWorld on its own simulator, with its splits and its score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from envrl.envs.adapters.ended import ended
from envrl.envs.adapters.scienceworld_simulator import need_simulator, new_game
from envrl.errors import RunError, UserError, suggest
from envrl.types import Observation, Step, Task

SPLITS = ("train", "valid", "test")
VARIATIONS = {
    "boil": (14, 7, 9),
    "change-the-state-of-matter-of": (14, 7, 9),
    "chemistry-mix": (16, 8, 8),
    "chemistry-mix-paint-secondary-color": (18, 9, 9),
    "chemistry-mix-paint-tertiary-color": (18, 9, 9),
    "find-animal": (150, 75, 75),
    "find-living-thing": (150, 75, 75),
    "find-non-living-thing": (150, 75, 75),
    "find-plant": (150, 75, 75),
    "freeze": (14, 7, 9),
    "grow-fruit": (62, 31, 33),
    "grow-plant": (62, 31, 33),
    "identify-life-stages-1": (6, 3, 5),
    "identify-life-stages-2": (4, 2, 4),
    "inclined-plane-determine-angle": (84, 42, 42),
    "inclined-plane-friction-named-surfaces": (692, 346, 348),
    "inclined-plane-friction-unnamed-surfaces": (80, 40, 42),
    "lifespan-longest-lived": (62, 31, 32),
    "lifespan-longest-lived-then-shortest-lived": (62, 31, 32),
    "lifespan-shortest-lived": (62, 31, 32),
    "measure-melting-point-known-substance": (218, 109, 109),
    "measure-melting-point-unknown-substance": (150, 75, 75),
    "melt": (14, 7, 9),
    "mendelian-genetics-known-plant": (60, 30, 30),
    "mendelian-genetics-unknown-plant": (240, 120, 120),
    "power-component": (10, 5, 5),
    "power-component-renewable-vs-nonrenewable-energy": (10, 5, 5),
    "test-conductivity": (450, 225, 225),
    "test-conductivity-of-unknown-substances": (300, 150, 150),
    "use-thermometer": (270, 135, 135),
}
"""Variations of each task by split; they are numbered through, those of train first. The numbers are ScienceWorld's."""
SIMPLIFICATIONS = (
    "easy",
    "teleportAction",
    "selfWateringFlowerPots",
    "openContainers",
    "openDoors",
    "noElectricalAction",
)
_ELECTRICAL = ("power-component", "conductivity")


def scienceworld(
    *,
    admissible: bool = False,  # list the commands that the simulator finds valid: some hundreds, slow
    simplifications: str = "",  # of the simulator's, by name, with commas between
) -> ScienceWorld:
    """Return ScienceWorld; `simplifications` are the original's, with commas between.

    `admissible` lists the commands that the simulator finds valid: some hundreds, at five to twenty times the cost of a
    step. Raises `UserError` where the package or Java is not installed, or for an unknown simplification.
    """
    for name in filter(None, simplifications.split(",")):
        if name not in SIMPLIFICATIONS:
            raise UserError(f"ScienceWorld has no simplification '{name}'{suggest(name, SIMPLIFICATIONS)}")
    need_simulator()
    return ScienceWorld(admissible, simplifications)


class ScienceWorld:
    """Science at school level in a house of ten places; see `TextEnv` for the methods.

    The reward is what a step adds to the score, 100 of which are 1; success is the whole score. A score below 0 (the
    focus on a wrong thing) ends the episode.
    """

    slow = True
    """By default it is played in worker processes."""

    def __init__(self, admissible: bool, simplifications: str) -> None:
        self._lists = admissible
        self._simplifications = simplifications
        self._game: Any = None
        self._score = 0
        self._last = Step(Observation(""), 0.0, False, False)

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the variations of all tasks; raises `UserError` for an unknown split. Nothing is started."""
        if split not in SPLITS:
            raise UserError(f"the world 'scienceworld' has no split '{split}'; choose from {', '.join(SPLITS)}")
        return _listed(split)

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start a variation; `seed` changes nothing. Raises `UserError` for an unknown task."""
        name, variation = self._known(task)
        if self._game is None:
            self._game = new_game()
        self._game.load(name, variation, self._simplifications, False)
        self._game.reset()
        self._score = 0
        self._last = self._answer("look around")
        sentence = " ".join(self._game.freeActionTaskDesc().split()).removeprefix("Task Description: ")
        sentence = re.sub(r"\AYour task is to:? ", "", sentence)
        first = self._last.observation
        text = f"{first.text}\n\nYour task is to: {sentence}"
        self._last = Step(Observation(text, first.admissible), 0.0, False, False)
        return self._last.observation

    def step(self, action: str) -> Step:
        """Carry out one command; after the end the last answer again, without reward.

        Raises `RuntimeError` before the first reset, `TypeError` for what is no text, `RunError` where the simulator is
        gone.
        """
        if self._game is None:
            raise RuntimeError("step was called before the first reset")
        if (again := ended(self._last, action)) is not None:
            return again
        self._last = self._answer(action.encode("utf-8", "replace").decode())
        return self._last

    def walkthrough(self, task: Task) -> tuple[str, ...]:
        """Return ScienceWorld's gold path, made anew by its simulator (a quarter of a second to some seconds)."""
        game = new_game()
        name, variation = self._known(task)
        game.load(name, variation, self._simplifications, True)
        return tuple(game.getGoldActionSequence())

    def _answer(self, command: str) -> Step:
        try:
            text = self._game.step(command)
            score = round(100 * self._game.getScore())
            completed = self._game.getCompleted()
            commands = self._game.getValidActionObjectCombinations() if self._lists else None
        except Exception as error:
            raise RunError(f"ScienceWorld's simulator is gone ({type(error).__name__}: {error})") from error
        gained, self._score = (score - self._score) / 100, score
        admissible = None if commands is None else tuple(dict.fromkeys(commands))
        return Step(Observation(text, admissible), gained, completed or score < 0, score >= 100, {"score": score})

    def _known(self, task: Task) -> tuple[str, int]:
        """Return a task's name and variation; raises `UserError` for one that its split has not."""
        listed = self.tasks(task.split)
        name, _, number = task.id.partition("/")
        if name not in VARIATIONS:
            raise UserError(f"ScienceWorld has no task '{name}'{suggest(name, VARIATIONS)}")
        numbers = [t.seed for t in listed if t.kind == name]
        if not number.isdecimal() or task.id != f"{name}/{int(number)}" or int(number) not in numbers:
            raise UserError(
                f"the split '{task.split}' of ScienceWorld has no task '{task.id}'; "
                f"choose from '{name}/{numbers[0]}' to '{name}/{numbers[-1]}'"
            )
        if "noElectricalAction" in self._simplifications and any(part in name for part in _ELECTRICAL):
            raise UserError(
                f"the task '{name}' cannot be done with the simplification noElectricalAction; leave it out"
            )
        return name, int(number)


@lru_cache(maxsize=len(SPLITS))
def _listed(split: str) -> tuple[Task, ...]:
    index = SPLITS.index(split)
    return tuple(
        Task(f"{name}/{number}", split, number, name)
        for name, sizes in VARIATIONS.items()
        for number in range(sum(sizes[:index]), sum(sizes[: index + 1]))
    )
