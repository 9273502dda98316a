"""`envrl view`: the page and the runs' data, to this machine alone.

Listens on the loopback address only. A request whose Host header names another machine is refused: so no foreign page
can reach the server by a name that it lets point here (DNS rebinding). Nothing can be changed, and no path is ever made
of what a request says: files of the page and episodes of the runs are looked up among those that are known.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from envrl.errors import UserError
from envrl.report.page import TYPES, static_files
from envrl.report.store import RunStore, labels

ADDRESS = "127.0.0.1"
_HOSTS = {"127.0.0.1", "localhost"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LONGEST_WORDS = 500


class ViewServer(ThreadingHTTPServer):
    """Serves these runs; `port` 0 takes a free one."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, paths: Sequence[Path], port: int) -> None:
        """Raise `UserError` where a path is no run, or the port is taken."""
        self.stores = [RunStore(path, empty=True) for path in paths]
        self.labels = labels(paths)
        self.files = static_files()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is taken" if error.errno == errno.EADDRINUSE else "may not be used by you"
            raise UserError(f"port {port} {why}: name another by --port, or --port 0 for any that is free") from None

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"

    def answer(self, path: str, query: Mapping[str, str]) -> Any:
        """Return the data behind an address; raises `KeyError` where there is none, `UserError` for a damaged file."""
        if path == "runs":
            return self.labels
        if path == "stamps":
            return [store.stamp() for store in self.stores]
        store = self._store(query["run"])
        views: dict[str, Callable[[], Any]] = {
            "overview": store.overview,
            "episodes": store.episodes,
            "episode": lambda: self._episode(store, query["id"]),
            "search": lambda: store.search(query["words"][:_LONGEST_WORDS]),
        }
        return views[path]()

    def _store(self, number: str) -> RunStore:
        if not (number.isascii() and number.isdigit() and int(number) < len(self.stores)):
            raise KeyError(number)
        return self.stores[int(number)]

    def _episode(self, store: RunStore, name: str) -> Any:
        file, _, offset = name.rpartition("@")
        if not (offset.isascii() and offset.isdigit()):
            raise KeyError(name)
        return store.episode(file, int(offset))


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "envrl", ""

    def do_GET(self) -> None:
        name = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
        if name not in _HOSTS:
            self._send_json(HTTPStatus.FORBIDDEN, {"error": f"this page is served at {self.server.url} alone"})
            return
        parts = urlsplit(self.path)
        path = parts.path.removeprefix("/") or "index.html"
        if path in self.server.files:
            self._send(HTTPStatus.OK, TYPES[Path(path).suffix], self.server.files[path].encode())
            return
        query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        try:
            if not path.startswith("api/"):
                raise KeyError(path)
            self._send_json(HTTPStatus.OK, self.server.answer(path.removeprefix("api/"), query))
        except KeyError:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is nothing at this address"})
        except UserError as error:
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})
        except OSError as error:
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": f"cannot read the run: {error.strerror}"})

    def _refuse(self) -> None:
        self.close_connection = True  # what a body says is not read
        self._send_json(HTTPStatus.METHOD_NOT_ALLOWED, {"error": "the page can only be read"})

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_HEAD = _refuse

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, "application/json; charset=utf-8", json.dumps(value, allow_nan=False).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the user's."""
