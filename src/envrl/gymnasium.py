"""Every world as a Gymnasium environment: `gym.make("envrl/household")`, once this module is imported.

`gym.make("envrl.gymnasium:envrl/household")` imports it as well. Observations and actions are texts.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from envrl.envs.answers import answer, close, first_observation, listed_tasks
from envrl.envs.lookup import find_task
from envrl.envs.registry import env_names, make
from envrl.errors import UserError, suggest
from envrl.rendering.formats import task_text
from envrl.types import Observation

try:
    import gymnasium
    from gymnasium import spaces
except ModuleNotFoundError as error:
    raise UserError("envrl.gymnasium needs the package 'gymnasium': pip install 'envrl[gymnasium]'") from error

NAMESPACE = "envrl"
_SAMPLED = 64  # characters of a random text, at most
_OPTIONS = ("split", "task")


class AnyText(spaces.Text):
    """The space of all texts; what `sample` draws are short ones of printable ASCII."""

    def __init__(self) -> None:
        super().__init__(_SAMPLED, charset=string.ascii_letters + string.digits + string.punctuation + " ")

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText)

    def __repr__(self) -> str:
        return "AnyText()"


class WorldEnv(gymnasium.Env[str, str]):
    """A world of envrl as a Gymnasium environment; `settings` are the world's own (`data` among them).

    `reset(seed=…)` draws a task of the split; `options={"task": n}` (or its id) takes that one, and
    `options={"split": …}` another split. Each info has `task` (its sentence), `task_id`, `kind`, `split`,
    `admissible_commands` (a tuple, or None where the world lists none), `templates` (commands with `<words>` to fill
    in), `success`, and `world`, what the world itself adds. Nothing is truncated: `gym.make(…, max_episode_steps=50)`.
    Raises `UserError` for what the world has not.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self, *, world: str = "household", split: str = "train", render_mode: str | None = None, **settings: Any
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise UserError(f"a world of envrl is rendered as 'ansi', not as '{render_mode}'")
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self.render_mode = render_mode
        self._world = make(world, **settings)
        self._name, self._split = world, split
        self._about: dict[str, str] = {}
        self._text = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a task and return its first text and info."""
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            if name not in _OPTIONS:
                raise UserError(f"reset of a world has no option '{name}'{suggest(name, _OPTIONS)}")
        split = options.get("split", self._split)
        tasks = listed_tasks(self._world, split, self._name)
        if not len(tasks):
            raise UserError(f"the split '{split}' of the world '{self._name}' has no tasks")
        drawn = int(self.np_random.integers(len(tasks))) if "task" not in options else options["task"]
        task = find_task(tasks, drawn, split)
        observation = first_observation(self._world, task, task.seed)
        sentence = task_text(observation)
        self._about = {"task": sentence, "task_id": task.id, "kind": task.kind, "split": split}
        return observation.text, self._info(observation, False, {})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out one command and return text, reward, terminated, False and info."""
        step = answer(self._world, action)
        info = self._info(step.observation, step.success, step.info)
        return step.observation.text, step.reward, step.done, False, info

    def render(self) -> str | None:
        """Return the text that was seen last, where the render mode is `ansi`."""
        return self._text if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Close the world."""
        close(self._world)

    def _info(self, observation: Observation, success: bool, further: Mapping[str, Any]) -> dict[str, Any]:
        self._text = observation.text
        return {
            **self._about,
            "admissible_commands": observation.admissible,
            "templates": tuple(map(str, observation.templates)),
            "success": success,
            "world": {**observation.info, **further},
        }


def register_worlds() -> list[str]:
    """Register every world that `envrl.make` knows as `envrl/NAME` and return these ids; again after `register_env`."""
    ids = [f"{NAMESPACE}/{name}" for name in env_names()]
    for identifier in ids:
        if identifier not in gymnasium.registry:
            world = identifier.removeprefix(f"{NAMESPACE}/")
            gymnasium.register(identifier, entry_point="envrl.gymnasium:WorldEnv", kwargs={"world": world})
    return ids


register_worlds()
