"""The world `verifiers`: an environment of the library verifiers, played as its own loop plays it.

The environment's rollout runs in a thread of this process. Where it asks its model, it gets the commands of our
episode, and what it would show the model is what is seen.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from envrl.envs.adapters.ended import ended
from envrl.envs.adapters.extras import imported, need
from envrl.errors import RunError, UserError
from envrl.ranges import AboveZero
from envrl.types import Observation, Step, Task

SPLITS = ("train", "eval")
_EXTRA = "verifiers"
_OVER = "The episode is over."


def verifiers(
    *,
    environment: str = "",  # its name, as verifiers.load_environment takes it
    arguments: str = "{}",  # what load_environment is called with, an object in JSON
    success: float = 1.0,  # the reward of an episode from which on it counts as a success
    timeout: AboveZero = 60.0,  # seconds that an answer may take
) -> VerifiersWorld:
    """Return the environment of this name, with the splits train and eval; it is loaded when tasks are listed.

    Raises `UserError` where none is named, or the arguments are no object, or the package verifiers is not installed.
    """
    if not environment:
        raise UserError(
            "env.verifiers.environment is the name of an environment, as verifiers.load_environment takes it"
        )
    try:
        values = json.loads(arguments)
    except ValueError as error:
        raise UserError(f"env.verifiers.arguments is an object in JSON, not '{arguments}' ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"env.verifiers.arguments is an object in JSON, not '{arguments}'")
    need("verifiers", "verifiers", _EXTRA)
    return VerifiersWorld(environment, json.dumps(values, sort_keys=True), success, timeout)


class VerifiersWorld:
    """An environment of verifiers; see `TextEnv` for the methods.

    Its reward is given when the episode ends. What it asks its own model for (a judge) is its own affair.
    """

    slow = True
    """By default it is played in worker processes."""

    def __init__(self, environment: str, arguments: str, success: float, timeout: float) -> None:
        self._environment, self._arguments = environment, arguments
        self._success, self._timeout = success, timeout
        self._rollout: _Rollout | None = None
        self._last = Step(Observation(""), 0.0, False, False)

    def tasks(self, split: str) -> Sequence[Task]:
        """Return a task for each row of the dataset; raises `UserError` for an unknown split or environment."""
        return _listed(self._environment, self._arguments, split)

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start a row; `seed` changes nothing. Raises `UserError` for an unknown task."""
        listed = self.tasks(task.split)
        number = int(task.id.rpartition("/")[2]) if task.id.rpartition("/")[2].isdecimal() else -1
        if not 0 <= number < len(listed) or listed[number].id != task.id:
            raise UserError(f"the environment '{self._environment}' has no task '{task.id}' in '{task.split}'")
        self.close()
        environment = _loaded(self._environment, self._arguments)
        row = dict(_dataset(environment, task.split)[number])
        self._rollout = _Rollout(environment, row | {"example_id": row.get("example_id", number)})
        self._last = self._next(self._rollout)
        return self._last.observation

    def step(self, action: str) -> Step:
        """Answer the environment's present question; after the end the last answer again, without reward.

        Raises `RuntimeError` before the first reset, `TypeError` for what is no text, `RunError` if it fails.
        """
        if self._rollout is None:
            raise RuntimeError("step was called before the first reset")
        if (again := ended(self._last, action)) is not None:
            return again
        self._rollout.say(action.encode("utf-8", "replace").decode())
        self._last = self._next(self._rollout)
        return self._last

    def close(self) -> None:
        """Give the episode up."""
        rollout, self._rollout = self._rollout, None
        if rollout is not None:
            rollout.cancel()

    def _next(self, rollout: _Rollout) -> Step:
        """Return what the environment shows next, or how it ended."""
        try:
            messages, end = rollout.heard(self._timeout)
        except queue.Empty as error:
            raise RunError(f"the environment '{self._environment}' says nothing for {self._timeout:g} s") from error
        if isinstance(end, BaseException):
            raise RunError(f"the environment '{self._environment}' failed ({type(end).__name__}: {end})"[:400]) from end
        text = "\n\n".join(filter(None, map(_content, _new(messages)))) or (_OVER if end is not None else "(nothing)")
        if end is None:
            return Step(Observation(text), 0.0, False, False)
        if end.get("error"):
            raise RunError(f"the environment '{self._environment}' failed ({end['error']})"[:400])
        reward = float(end.get("reward") or 0.0)
        return Step(
            Observation(text), reward, True, reward >= self._success, {"metrics": dict(end.get("metrics") or {})}
        )


class _Rollout:
    """A rollout of an environment under way in the thread of its loop, with our words as its model's."""

    def __init__(self, environment: Any, row: Mapping[str, Any]) -> None:
        self._heard: queue.SimpleQueue[tuple[Sequence[Any], Any]] = queue.SimpleQueue()
        self._said: asyncio.Queue[str] = asyncio.Queue()
        self._loop = _loop(os.getpid())
        self._future = asyncio.run_coroutine_threadsafe(self._run(environment, row), self._loop)

    def say(self, text: str) -> None:
        """Answer the question that was heard last."""
        self._loop.call_soon_threadsafe(self._said.put_nowait, text)

    def heard(self, timeout: float) -> tuple[Sequence[Any], Any]:
        """Return the messages of the next question and None, or those of the end and its output or exception."""
        return self._heard.get(timeout=timeout)

    def cancel(self) -> None:
        """Stop it where it stands."""
        self._future.cancel()

    async def _run(self, environment: Any, row: Mapping[str, Any]) -> None:
        try:
            client = _client_class()(self._ask)
            output = await environment.run_rollout(dict(row), client, "envrl", {})
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # an environment may raise anything, and somebody waits for its answer
            self._heard.put(((), error))
        else:
            self._heard.put((output.get("completion") or (), output))

    async def _ask(self, messages: Sequence[Any]) -> str:
        self._heard.put((messages, None))
        return await self._said.get()


@lru_cache(maxsize=1)
def _client_class() -> Any:
    """Return a client of verifiers that asks a function: `ask(messages)` is the response."""
    from verifiers.clients import Client  # pyright: ignore[reportMissingImports]
    from verifiers.types import Response, ResponseMessage  # pyright: ignore[reportMissingImports]

    class Asking(Client):
        def setup_client(self, config: Any) -> Any:
            return config

        async def to_native_tool(self, tool: Any) -> Any:
            return tool

        async def to_native_prompt(self, messages: Any) -> tuple[Any, dict[str, Any]]:
            return messages, {}

        async def get_native_response(
            self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **_: Any
        ) -> str:
            return await self.client(prompt)

        async def raise_from_native_response(self, response: str) -> None:
            return None

        async def from_native_response(self, response: str) -> Any:
            message = ResponseMessage(content=response, finish_reason="stop", is_truncated=False)
            return Response(id="envrl", created=0, model="envrl", message=message)

        async def close(self) -> None:
            return None

    return Asking


@lru_cache(maxsize=1)
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the loop that this process's rollouts run in, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=f"envrl-verifiers-{process}", daemon=True).start()
    return loop


@lru_cache(maxsize=8)
def _loaded(environment: str, arguments: str) -> Any:
    """Return an environment; raises `UserError` where it cannot be loaded."""
    library = imported("verifiers", "verifiers", _EXTRA)
    if not hasattr(library, "MultiTurnEnv"):
        raise UserError("this version of verifiers has no MultiTurnEnv: pip install 'envrl[verifiers]'")
    logging.getLogger("verifiers").setLevel(logging.ERROR)
    try:
        return library.load_environment(environment, **json.loads(arguments))
    except Exception as error:  # an environment may raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"verifiers cannot load the environment '{environment}' ({reason})"[:400]) from error


@lru_cache(maxsize=16)
def _listed(environment: str, arguments: str, split: str) -> tuple[Task, ...]:
    if split not in SPLITS:
        raise UserError(f"the world 'verifiers' has no split '{split}'; choose from {', '.join(SPLITS)}")
    rows = _dataset(_loaded(environment, arguments), split)
    return tuple(Task(f"{split}/{number:06d}", split, number) for number in range(len(rows)))


def _dataset(environment: Any, split: str) -> Any:
    return environment.get_dataset() if split == "train" else environment.get_eval_dataset()


def _new(messages: Sequence[Any]) -> Sequence[Any]:
    """Return the messages behind the last one of the model."""
    last = max((number for number, each in enumerate(messages) if _part(each, "role") == "assistant"), default=-1)
    return messages[last + 1 :]


def _content(message: Any) -> str:
    content = _part(message, "content")
    if isinstance(content, list):  # parts: only texts can be shown
        content = "\n".join(str(_part(part, "text") or "") for part in content)
    return content.strip() if isinstance(content, str) else ""


def _part(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)
