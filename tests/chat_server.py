"""An OpenAI-compatible endpoint for tests: it plays well, and fails in every way that it is told to."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from server import running

Behaviour = Callable[["Handler"], None]


class Asked(NamedTuple):
    """A request: when it came (seconds), with which authorization, and what it asked for."""

    time: float
    path: str
    authorization: str
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        (message,) = self.body["messages"]
        assert message["role"] == "user"
        return message["content"]


@dataclass
class ChatServer:
    """Answers by the behaviours of `plan`, one a request, then by `otherwise`."""

    otherwise: Behaviour
    address: str = ""
    plan: list[Behaviour] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    under_way: int = 0
    """Requests that came and are not answered."""
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    release: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    server_of: ChatServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        here = self.server_of
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked = Asked(time.monotonic(), self.path, self.headers.get("Authorization", ""), body)
        with here.lock:
            here.asked.append(self.asked)
            behaviour = here.plan.pop(0) if here.plan else here.otherwise
            here.under_way += 1
            here.most_at_once = max(here.most_at_once, here.under_way)
        with suppress(ConnectionError):
            behaviour(self)

    def send(self, status: int, content: bytes, kind: str = "application/json", **headers: str) -> None:
        with self.server_of.lock:
            self.server_of.under_way -= 1  # before it can be read: a request that follows is never counted beside it
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that has hung up is no news."""


def says(response: str | None, usage: dict[str, Any] | None = None) -> Behaviour:
    """Answer with a completion of this content."""
    completion: dict[str, Any] = {"choices": [{"index": 0, "message": {"role": "assistant", "content": response}}]}
    content = json.dumps({"object": "chat.completion", **completion, **({"usage": usage} if usage else {})})
    return lambda handler: handler.send(200, content.encode())


def opens_boxes(write: Callable[[str, str], str]) -> Behaviour:
    """Play the world `boxes` as its expert does, from the prompt alone: the first listed command not yet given."""

    def act(handler: Handler) -> None:
        listed = re.findall(r"^open box \d$", handler.asked.prompt, re.M)
        given = re.findall(r"^Command: (.+)$", handler.asked.prompt, re.M)
        command = next(command for command in listed if command not in given)
        says(write("It may lie there.", command), {"prompt_tokens": 100, "completion_tokens": 7})(handler)

    return act


def status(number: int, message: str = "no", code: str | None = None, **headers: str) -> Behaviour:
    body = {"error": {"message": message, "code": code}}
    return lambda handler: handler.send(number, json.dumps(body).encode(), **headers)


def rubbish(content: bytes, kind: str = "application/json") -> Behaviour:
    return lambda handler: handler.send(200, content, kind)


def stall(handler: Handler) -> None:
    handler.server_of.release.wait(60)
    handler.close_connection = True


def break_off(handler: Handler) -> None:
    handler.close_connection = True


@contextmanager
def chat_server(otherwise: Behaviour) -> Iterator[ChatServer]:
    here = ChatServer(otherwise)
    http = Quiet(("127.0.0.1", 0), type("Handler", (Handler,), {"server_of": here}))
    here.address = f"http://127.0.0.1:{http.server_address[1]}/v1"
    with running(http, here.release):
        yield here
