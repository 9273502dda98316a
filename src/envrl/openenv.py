"""Every world as an OpenEnv server, and the client for it: `envrl serve household`, then

    from envrl.openenv import WorldAction, WorldClient

    with WorldClient(base_url="http://127.0.0.1:8000").sync() as env:
        result = env.reset(split="valid_seen", index=0)
        result = env.step(WorldAction(command="go to desk 1"))

The records, the server and the client are subclasses of OpenEnv's own (package `openenv`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, TypeVar
from uuid import uuid4

from envrl.envs.answers import answer, close, first_observation, listed_tasks
from envrl.envs.lookup import find_task
from envrl.envs.registry import make
from envrl.errors import UserError
from envrl.rendering.formats import task_text
from envrl.types import Observation, Task

try:
    from openenv.core import EnvClient  # pyright: ignore[reportMissingImports]
    from openenv.core.client_types import StepResult  # pyright: ignore[reportMissingImports]
    from openenv.core.env_server import http_server, interfaces, types  # pyright: ignore[reportMissingImports]
    from pydantic import Field
except ModuleNotFoundError as error:
    raise UserError("envrl.openenv needs the package 'openenv': pip install 'envrl[openenv]'") from error

SPLITS = ("train", "valid", "valid_seen", "valid_unseen", "valid_train", "test", "all")
"""The names of splits that a world is asked for."""
_Asked = TypeVar("_Asked")


class WorldAction(types.Action):
    """A command."""

    command: str = Field(..., description="The command, in the words of the world")


class WorldObservation(types.Observation):
    """What the world says; `reward` and `done` are OpenEnv's own fields."""

    text: str = Field(default="", description="What is seen now")
    admissible_commands: list[str] | None = Field(default=None, description="Commands accepted now; null: unknown")
    templates: list[str] = Field(default_factory=list, description="Commands with <words> of one's own to fill in")
    success: bool = Field(default=False, description="Whether the task has been done")
    task: str = Field(default="", description="The task's sentence")


class WorldState(types.State):
    """Which task is played."""

    split: str = ""
    task_id: str = ""
    kind: str = ""


class WorldServer(interfaces.Environment):
    """A world as an environment of an OpenEnv server, with OpenEnv's Task API.

    `reset` takes `split`, and one of `index` (in the split) and `task` (its id); without them `seed` draws a task. See
    `app` for the arguments.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, world: str, split: str, settings: dict[str, Any]) -> None:
        super().__init__()
        self._world = make(world, **settings)
        self._name, self._split = world, split
        self._state = WorldState(step_count=0)
        self._sentence = ""

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        split: str | None = None,
        index: int | None = None,
        task: str | None = None,
        **further: Any,
    ) -> WorldObservation:
        """Start a task; raises `UserError`, whose sentence the client is told."""
        if further:
            raise UserError(f"reset takes seed, episode_id, split, index and task, not {', '.join(further)}")
        if index is not None and task is not None:
            raise UserError("reset takes an index or a task, not both")
        split = split or self._split
        tasks = listed_tasks(self._world, split, self._name)
        wanted = task if task is not None else index
        chosen = find_task(tasks, random.Random(seed).randrange(len(tasks)) if wanted is None else wanted, split)
        observation = first_observation(self._world, chosen, chosen.seed)
        self._sentence = task_text(observation)
        self._state = WorldState(
            episode_id=episode_id or str(uuid4()), step_count=0, split=split, task_id=chosen.id, kind=chosen.kind
        )
        return self._said(observation, 0.0, False, False)

    def step(self, action: WorldAction, timeout_s: float | None = None, **further: Any) -> WorldObservation:
        """Carry out a command; there is no limit of time, and none of steps."""
        step = answer(self._world, action.command)
        self._state.step_count += 1
        return self._said(step.observation, step.reward, step.done, step.success)

    @property
    def state(self) -> WorldState:
        """Which task is played, and how many commands were given."""
        return self._state

    def close(self) -> None:
        """Close the world."""
        close(self._world)

    def get_metadata(self) -> types.EnvironmentMetadata:
        """Return the world's name for OpenEnv's pages."""
        return types.EnvironmentMetadata(
            name=self._name, description=f"The world '{self._name}' of envrl", version=version("envrl")
        )

    def list_splits(self) -> list[str]:
        """Return the splits that the world has, of the names in `SPLITS`."""
        return [name for name in SPLITS if _answers(lambda name=name: len(self._world.tasks(name)))]

    def num_tasks(self, split: str) -> int:
        """Return the number of tasks of a split."""
        return len(self._tasks(split))

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """Return all tasks of a split: index, id and kind of each."""
        return self.get_task_range(split)

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """Return one of them; raises `IndexError`."""
        tasks = self._tasks(split)
        if not 0 <= index < len(tasks):
            raise IndexError(index)
        return _described(index, tasks[index])

    def get_task_range(self, split: str, start: int | None = None, stop: int | None = None) -> list[dict[str, Any]]:
        """Return those of a slice."""
        tasks = self._tasks(split)
        return [_described(index, tasks[index]) for index in range(*slice(start, stop).indices(len(tasks)))]

    def _tasks(self, split: str) -> Sequence[Task]:
        try:
            return listed_tasks(self._world, split, self._name)
        except UserError as error:  # OpenEnv's routes answer with status 400, which has no place for a sentence
            raise IndexError(str(error)) from error

    def _said(self, observation: Observation, reward: float, done: bool, success: bool) -> WorldObservation:
        return WorldObservation(
            text=observation.text,
            admissible_commands=None if observation.admissible is None else list(observation.admissible),
            templates=[str(template) for template in observation.templates],
            success=success,
            task=self._sentence,
            reward=reward,
            done=done,
        )


class WorldClient(EnvClient[WorldAction, WorldObservation, WorldState]):
    """OpenEnv's client for such a server; `base_url` is its address. `.sync()` for code without `await`."""

    def _step_payload(self, action: WorldAction) -> dict[str, Any]:
        return {"command": action.command}

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[WorldObservation]:
        reward, done = payload.get("reward"), bool(payload.get("done"))
        observation = WorldObservation(**payload.get("observation", {}), reward=reward, done=done)
        return StepResult(observation=observation, reward=reward, done=done)

    def _parse_state(self, payload: dict[str, Any]) -> WorldState:
        return WorldState(**payload)


def app(world: str = "household", *, split: str = "train", sessions: int = 64, **settings: Any) -> Any:
    """Return the server of a world as a FastAPI application (`uvicorn.run(app("household"))`).

    `split` is what `reset` draws from unless it is told; `sessions` clients may play at a time, each in a world of its
    own; `settings` are the world's (`data` among them). Raises `UserError` for what the world has not.
    """
    if isinstance(sessions, bool) or not isinstance(sessions, int) or sessions < 1:
        raise UserError(f"sessions is a whole number above 0, not {sessions!r}")
    made = make(world, **settings)
    if not len(listed_tasks(made, split, world)):
        raise UserError(f"the split '{split}' of the world '{world}' has no tasks")
    close(made)

    class Server(WorldServer):
        """What OpenEnv makes for each session, without arguments."""

        REQUIRES_SINGLE_THREAD_EXECUTOR = bool(getattr(made, "slow", False))  # an engine may know one thread

        def __init__(self) -> None:
            super().__init__(world, split, settings)

    return http_server.create_app(
        Server, WorldAction, WorldObservation, env_name=world, max_concurrent_envs=sessions, state_cls=WorldState
    )


def _answers(ask: Callable[[], _Asked]) -> bool:
    try:
        return bool(ask())
    except UserError:
        return False


def _described(index: int, task: Task) -> dict[str, Any]:
    return {"index": index, "id": task.id, "kind": task.kind}
