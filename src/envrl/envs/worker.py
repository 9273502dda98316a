"""A worker process: plays many episodes, each in its slot, one command after another; it ends when its parent does."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from numbers import Real

from envrl.envs.answers import answer, first_observation, what_happened
from envrl.envs.protocol import TextEnv
from envrl.envs.registry import CannotMake
from envrl.envs.wire import READY, Answer, Call, Failure, Hello, Inbox, pack
from envrl.errors import UserError
from envrl.processes import end_with
from envrl.types import Observation, Step

_CHUNK = 1 << 16


def serve(connection: int, lifeline: int, parent: int) -> None:
    """Carry out calls from the socket `connection` until it closes.

    `lifeline` is a pipe that closes when the run ends, whatever the worlds are doing at that time; `parent` is the
    process that started this one: the run, or its fork server.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()  # for other systems than Linux
    end_with(parent)
    with socket.socket(fileno=connection) as wire:
        inbox = Inbox()
        envs: dict[int, TextEnv] = {}
        make_env: Callable[[], TextEnv] | None = None
        while data := wire.recv(_CHUNK):
            for message in inbox.feed(data):
                if isinstance(message, Hello):
                    try:
                        make_env = pickle.loads(message.make_env)
                        wire.sendall(pack(Answer(READY, 0, None)))
                    except Exception as error:  # a module that is not found, for one
                        what = f"the world cannot be made there ({type(error).__name__}: {error})"
                        wire.sendall(pack(Answer(READY, 0, Failure(what, mistake=False))))
                elif make_env is not None:
                    for answer in _answers(envs, make_env, message):
                        wire.sendall(_packed(answer))


def _packed(answer: Answer) -> bytes:
    try:
        return pack(answer)
    except Exception as error:  # what a world put into `info` need not be picklable
        what = f"its answer cannot be sent ({type(error).__name__}: {error})"[:300]
        return pack(answer._replace(value=Failure(what, mistake=False)))


def _answers(envs: dict[int, TextEnv], make_env: Callable[[], TextEnv], call: Call) -> Iterator[Answer]:
    """Yield the items of a call's answer, the last one a failure where the world raised."""
    item = 0
    try:
        if call.task is not None:
            if call.slot not in envs:
                envs[call.slot] = make_env()
            yield Answer(call.number, item, first_observation(envs[call.slot], call.task, call.seed))
            item += 1
        for command in call.commands:
            yield Answer(call.number, item, answer(envs[call.slot], command))
            item += 1
    except UserError as error:
        yield Answer(call.number, item, Failure(str(error), mistake=not isinstance(error, CannotMake)))
    except Exception as error:  # a world may raise anything; the pool decides what becomes of the episode
        yield Answer(call.number, item, Failure(what_happened(error), mistake=False))


def is_answer(message: object, number: int, item: int, starts: bool) -> bool:
    """Return whether a message is that item of the answer to call `number`, which `starts` a task or does not."""
    if not isinstance(message, Answer) or (message.number, message.item) != (number, item):
        return False
    value = message.value
    if isinstance(value, Failure):
        return True
    if starts and item == 0:
        return _is_observation(value)
    return (
        isinstance(value, Step)
        and _is_observation(value.observation)
        and isinstance(value.reward, Real)
        and isinstance(value.done, bool)
        and isinstance(value.success, bool)
    )


def _is_observation(value: object) -> bool:
    if not isinstance(value, Observation) or not isinstance(value.text, str):
        return False
    offered = value.admissible
    return offered is None or (isinstance(offered, tuple) and all(isinstance(command, str) for command in offered))


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)
    os._exit(1)
