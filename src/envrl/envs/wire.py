"""Messages between a pool of worlds and its workers: pickled, each framed by a mark, its length and a checksum."""

from __future__ import annotations

import pickle
import struct
import zlib
from typing import Any, NamedTuple

from envrl.types import Observation, Step, Task

_HEADER = struct.Struct(">4sII")  # mark, bytes, checksum
_MARK = b"ENVR"
_LONGEST = 1 << 28
READY = -1
"""The number of the answer by which a worker says that it has begun."""


class Hello(NamedTuple):
    """The first message to a worker: the pickled function that makes a world."""

    make_env: bytes


class Call(NamedTuple):
    """What a worker is to do in a slot: start a task where there is one, then carry out the commands."""

    number: int
    slot: int
    task: Task | None
    seed: int
    commands: tuple[str, ...]


class Failure(NamedTuple):
    """An exception of a world; `mistake`: a `UserError`, whose message is meant for the user as it is."""

    what: str
    mistake: bool


class Answer(NamedTuple):
    """One item of the answer to a call: the first observation where a task was started, then a step a command."""

    number: int
    item: int
    value: Observation | Step | Failure | None


def pack(message: Any) -> bytes:
    """Return a message as it goes over the wire."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _HEADER.pack(_MARK, len(body), zlib.crc32(body)) + body


class Inbox:
    """Bytes as they come in, and the messages that they make; `garbled` says what came that is none."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.garbled = ""

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages that are whole now, up to the first that is garbled."""
        self._bytes += data
        messages = []
        while not self.garbled and len(self._bytes) >= _HEADER.size:
            mark, length, checksum = _HEADER.unpack_from(self._bytes)
            end = _HEADER.size + length
            if mark != _MARK or length > _LONGEST:
                self.garbled = "bytes that are no message"
            elif len(self._bytes) < end:
                break
            else:
                body = bytes(self._bytes[_HEADER.size : end])
                del self._bytes[:end]
                messages += self._read(body, checksum)
        return messages

    def _read(self, body: bytes, checksum: int) -> list[Any]:
        if zlib.crc32(body) != checksum:
            self.garbled = "a message with a wrong checksum"
            return []
        try:
            return [pickle.loads(body)]
        except Exception as error:  # a class that is not here, for one
            self.garbled = f"a message that cannot be read ({type(error).__name__}: {error})"
            return []
