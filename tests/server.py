"""A web server for tests that can break off, alter, stall, ignore ranges, refuse, and send on."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Request"], None]


@dataclass
class Server:
    """Answers with `files`, by what `plan` says of the next request for each path, else as it should."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    plan: dict[str, list[Behaviour]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Every request: its path and its range."""
    stalling: threading.Event = field(default_factory=threading.Event)
    """Set while an answer has stalled."""
    release: threading.Event = field(default_factory=threading.Event)

    def ranges(self, path: str) -> list[str]:
        return [asked for where, asked in self.asked if where == path]


class Request(BaseHTTPRequestHandler):
    server_of: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        here = self.server_of
        here.asked.append((path, self.headers.get("Range", "")))
        plan = here.plan.get(path, [])
        with suppress(ConnectionError):
            (plan.pop(0) if plan else whole)(self)
        self.close_connection = True

    @property
    def content(self) -> bytes:
        return self.server_of.files[self.path.lstrip("/")]

    def head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def whole(request: Request, etag: str = '"1"', cut: int | None = None, alter: bool = False) -> None:
    """Answer as a server should: with a range where one is asked for and the version is still the same."""
    if request.path.lstrip("/") not in request.server_of.files:
        return status(404)(request)
    content = request.content
    start = 0
    asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    if asked and request.headers.get("If-Range", etag) == etag:
        start = int(asked[1])
        if start >= len(content):
            return request.head(416, 0, Content_Range=f"bytes */{len(content)}")
        where = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        request.head(206, len(content) - start, **where, **({"ETag": etag} if etag else {}))
    else:
        request.head(200, len(content), **({"ETag": etag} if etag else {}))
    body = content[start:]
    body = bytes([body[0] ^ 1]) + body[1:] if alter else body
    request.wfile.write(body if cut is None else body[:cut])
    request.wfile.flush()
    return None


def cut(after: int, etag: str = '"1"') -> Behaviour:
    return lambda request: whole(request, etag, after)


def altered(request: Request) -> None:
    whole(request, alter=True)


def version(etag: str) -> Behaviour:
    return lambda request: whole(request, etag)


def no_range(request: Request) -> None:
    request.head(200, len(request.content))
    request.wfile.write(request.content)


def stall(after: int) -> Behaviour:
    def act(request: Request) -> None:
        whole(request, cut=after)
        request.server_of.stalling.set()
        request.server_of.release.wait(60)

    return act


def status(code: int, **headers: str) -> Behaviour:
    return lambda request: request.head(code, 0, **headers)


def to(path: str) -> Behaviour:
    return lambda request: request.head(302, 0, Location=f"/{path}")


def web_page(request: Request) -> None:
    body = b"<html>Do you want to download this file?</html>"
    request.head(200, len(body), Content_Type="text/html; charset=utf-8")
    request.wfile.write(body)


@contextmanager
def serving() -> Iterator[Server]:
    here = Server()
    handler = type("Handler", (Request,), {"server_of": here})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    here.address = f"http://127.0.0.1:{http.server_address[1]}"
    with running(http, here.release):
        yield here


@contextmanager
def running(http: ThreadingHTTPServer, release: threading.Event) -> Iterator[None]:
    """Serve in a thread; at the end `release` is set, for requests that wait for it, and all is closed."""
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        release.set()
        http.shutdown()
        http.server_close()
        thread.join()
