"""The world `openenv`: an environment behind a server of OpenEnv, at an address.

It speaks the servers' own form (https://github.com/huggingface/OpenEnv): JSON messages over a web socket, a session an
episode; the schema and the Task API over HTTP.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from envrl.envs.adapters.ended import ended
from envrl.envs.adapters.extras import imported, need
from envrl.envs.adapters.seeded import SeededTasks
from envrl.errors import RunError, UserError, suggest
from envrl.ranges import AboveZero, Positive
from envrl.types import Observation, Step, Task, Template

_SLOT = "<words>"
_NOT_SHOWN = ("metadata", "templates")
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Fields:
    """Where the command goes in an action, and what is what in an observation; see `openenv`."""

    command: str
    text: tuple[str, ...]
    commands: str
    success: str


def openenv(
    *,
    address: str = "",  # of the server, as http://127.0.0.1:8000
    command: str = "",  # the field of an action that takes the command; empty: the only one that is required
    text: tuple[str, ...] = (),  # the fields of an observation to show; empty: `text`, or all where there is none
    commands: str = "admissible_commands",  # the field that lists the commands that are accepted now, if there is one
    success: str = "success",  # the field that says that the task is done; without it a reward above 0 at the end does
    tasks: Positive = 1000,  # tasks of each split, each a seed, where the server lists no tasks
    timeout: AboveZero = 60.0,  # seconds that an answer may take
) -> OpenEnvWorld:
    """Return the environment of the server at this address.

    A server with OpenEnv's Task API has its own splits and tasks; another one has tasks by seed, in the splits train,
    valid and test. Raises `UserError` for an address that is none, or where the package websockets is not installed;
    the server is asked when tasks are listed or played.
    """
    where = urlsplit(address)
    if where.scheme not in ("http", "https", "ws", "wss") or not where.hostname:
        given = f", not '{address}'" if address else ""
        raise UserError(f"env.openenv.address is that of an OpenEnv server, such as http://127.0.0.1:8000{given}")
    need("websockets", "openenv", "openenv")
    shown = (text,) if isinstance(text, str) else tuple(text)
    base = f"http{address.removeprefix('http').removeprefix('ws')}".rstrip("/")
    return OpenEnvWorld(base, Fields(command, shown, commands, success), tasks, timeout)


class OpenEnvWorld:
    """An environment behind a server; see `TextEnv` for the methods. An episode is a session of its own."""

    slow = True
    """By default it is played in worker processes."""

    def __init__(self, address: str, fields: Fields, count: int, timeout: float) -> None:
        self._address, self._fields, self._timeout = address, fields, timeout
        self._seeded = SeededTasks("openenv", (("train", count), ("valid", count), ("test", count)))
        self._session: Any = None
        self._open = ExitStack()
        self._action = "", ""
        self._last = Step(Observation(""), 0.0, False, False)

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the server's tasks, or seeds; raises `UserError` for an unknown split or where no server answers."""
        listed = _listed(self._address, split, self._timeout)
        return self._seeded.tasks(split) if listed is None else tuple(listed.values())

    def reset(self, task: Task, seed: int = 0) -> Observation:
        """Start a task in a new session; `seed` changes nothing.

        Raises `UserError` where the server refuses it, `RunError` where it cannot be reached.
        """
        listed = _listed(self._address, task.split, self._timeout)
        if listed is None:
            data: dict[str, Any] = {"seed": self._seeded.find(task).seed}
        elif task.id not in listed:
            raise UserError(f"the server at {self._address} has no task '{task.id}' in its split '{task.split}'")
        else:
            data = {"split": task.split, "index": listed[task.id].seed}
        self._action = _action(self._address, self._fields.command, self._timeout)
        self.close()
        self._session = self._opened()
        answer = self._asked("reset", data)
        if "code" in answer:
            raise UserError(f"the server at {self._address} refuses the task '{task.id}': {_message(answer)}")
        self._last = self._step(answer)
        return self._last.observation

    def step(self, action: str) -> Step:
        """Carry out one command; after the end the last answer again, without reward.

        Raises `RuntimeError` before the first reset, `TypeError` for what is no text, `RunError` if the server fails.
        """
        if self._session is None:
            raise RuntimeError("step was called before the first reset")
        if (again := ended(self._last, action)) is not None:
            return again
        field, kind = self._action
        value: Any = action.encode("utf-8", "replace").decode()
        if kind != "string":
            try:
                value = int(value) if kind == "integer" else float(value)
            except ValueError:
                refusal = f"A command is {'a whole' if kind == 'integer' else 'a'} number here."
                return Step(Observation(refusal, self._last.observation.admissible), 0.0, False, False)
        answer = self._asked("step", {field: value})
        if "code" in answer:
            raise RunError(f"the server at {self._address} answers {action!r:.60} with an error: {_message(answer)}")
        self._last = self._step(answer)
        return self._last

    def close(self) -> None:
        """End the session."""
        self._session = None
        self._open.close()

    def _opened(self) -> Any:
        client = imported("websockets.sync.client", "openenv", "openenv")
        proxy = {"proxy": None} if urlsplit(self._address).hostname in _LOCAL else {}
        try:
            connection = client.connect(f"ws{self._address.removeprefix('http')}/ws", max_size=None, **proxy)
            return self._open.enter_context(connection)
        except Exception as error:  # what a handshake may raise is a long list
            raise RunError(f"no session with the OpenEnv server at {self._address} ({_said(error)})") from error

    def _asked(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data of the answer to a message; that of an error has a `code`."""
        try:
            with suppress(Exception):  # a refusal may be there to be read, the session closed
                self._session.send(json.dumps({"type": kind, "data": data}))
            message = json.loads(self._session.recv(timeout=self._timeout))
            answer = message["data"]
        except Exception as error:  # closed, cut off, too late, or not in OpenEnv's form
            self.close()
            raise RunError(f"the OpenEnv server at {self._address} is gone ({_said(error)})") from error
        if answer.get("code") == "CAPACITY_REACHED":
            raise RunError(
                f"the OpenEnv server at {self._address} has no free session ({_message(answer)}): let it hold more "
                "(max_concurrent_envs), or play fewer episodes at a time (rollout.slots)"
            )
        return answer

    def _step(self, answer: Mapping[str, Any]) -> Step:
        fields, seen = self._fields, dict(answer.get("observation") or {})
        reward, done = float(answer.get("reward") or 0.0), bool(answer.get("done"))
        won = bool(seen[fields.success]) if fields.success in seen else reward > 0
        commands, free = seen.get(fields.commands), seen.get("templates")
        observation = Observation(
            _text(seen, fields),
            tuple(map(str, commands)) if isinstance(commands, list) else None,
            templates=tuple(map(_template, free)) if isinstance(free, list) else (),
        )
        return Step(observation, reward, done, done and won)


def _text(seen: Mapping[str, Any], fields: Fields) -> str:
    """Return what is shown of an observation: one field as it stands, several with their names."""
    chosen = fields.text
    for name in chosen:
        if name not in seen:
            raise UserError(f"the observations have no field '{name}' (env.openenv.text){suggest(name, seen)}")
    if not chosen:
        left_out = (*_NOT_SHOWN, fields.commands, fields.success)
        chosen = (
            ("text",) if isinstance(seen.get("text"), str) else tuple(name for name in seen if name not in left_out)
        )
    texts = {name: _written(seen[name]) for name in chosen}
    if len(texts) == 1:
        return next(iter(texts.values())) or "(nothing)"
    return "\n".join(f"{name}: {text}" for name, text in texts.items() if text) or "(nothing)"


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _template(text: str) -> Template:
    before, _, after = str(text).partition(_SLOT)
    return Template(before, (), after)


@lru_cache(maxsize=8)
def _listed(address: str, split: str, timeout: float) -> dict[str, Task] | None:
    """Return the server's tasks of a split by id, each with its index as its seed; None where it lists none."""
    _, names = _get(f"{address}/list_environments", timeout)
    if not isinstance(names, list) or not names:
        return None
    status, found = _get(f"{address}/{names[0]}/tasks", timeout, {"split": split})
    if status in (404, 405, 501):
        return None
    if status != 200 or not isinstance(found, dict):
        _, splits = _get(f"{address}/{names[0]}/splits", timeout)
        known = [each["name"] for each in splits] if isinstance(splits, list) else []
        raise UserError(f"the server at {address} lists no tasks of a split '{split}'{suggest(split, known)}")
    tasks = [_task(split, index, said) for index, said in enumerate(found["tasks"])]
    if len({task.id for task in tasks}) < len(tasks):
        tasks = [_task(split, index, None) for index in range(len(tasks))]
    return {task.id: task for task in tasks}


def _task(split: str, index: int, said: Any) -> Task:
    about = said if isinstance(said, dict) else {}
    name, kind = about.get("id"), about.get("kind")
    name = name if isinstance(name, str) and name else f"{split}/{index:06d}"
    return Task(name, split, index, kind if isinstance(kind, str) else "")


@lru_cache(maxsize=8)
def _action(address: str, wanted: str, timeout: float) -> tuple[str, str]:
    """Return the field of the server's actions that takes the command, and its type; raises `UserError`."""
    status, schema = _get(f"{address}/schema", timeout)
    action = schema.get("action") if status == 200 and isinstance(schema, dict) else None
    if not isinstance(action, dict):
        raise UserError(f"the server at {address} has no schema of its actions (/schema answers {status})")
    fields = {name: of for name, of in action.get("properties", {}).items() if name != "metadata"}
    required = [name for name in action.get("required", []) if name in fields]
    possible = required if len(required) == 1 or len(fields) > 1 else list(fields)
    if wanted and wanted not in fields:
        raise UserError(
            f"the actions of {address} have no field '{wanted}' (env.openenv.command){suggest(wanted, fields)}"
        )
    if not wanted and len(possible) != 1:
        raise UserError(f"name the field that takes the command in env.openenv.command: one of {', '.join(fields)}")
    name = wanted or possible[0]
    kind = fields[name].get("type")
    if kind not in ("string", "integer", "number"):
        raise UserError(f"the field '{name}' of the actions of {address} takes neither text nor a number")
    return name, kind


def _get(url: str, timeout: float, data: Mapping[str, Any] | None = None) -> tuple[int, Any]:
    """Return status and JSON of an answer (None where it is none); raises `UserError` where there is no server."""
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    proxies = [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in _LOCAL else []
    try:
        with urllib.request.build_opener(*proxies).open(request, timeout=timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None
    except (OSError, ValueError) as error:
        where = url.split("/", 3)
        raise UserError(
            f"no OpenEnv server answers at {'/'.join(where[:3])} ({_said(error)}): start it, or name another in "
            "env.openenv.address"
        ) from error


def _said(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split())[:200] or type(error).__name__


def _message(answer: Mapping[str, Any]) -> str:
    return " ".join(str(answer.get("message", "without a message")).split())[:300]
