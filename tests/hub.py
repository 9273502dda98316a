"""A hub of models for tests: the routes that `huggingface_hub` asks, with answers that can fail."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
import huggingface_hub.constants
import pytest

import server as web


@dataclass
class Hub(web.Server):
    """Models by id and commit: `branches[id]["main"]` is the newest commit, `commits[commit]` its files."""

    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and error code that every question about a model gets in place of an answer."""

    def put(self, identifier: str, folder: Path, branch: str = "main") -> str:
        """Take a folder's files as the newest commit of a model; return the commit."""
        content = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        commit = hashlib.sha1(b"".join([branch.encode(), *content.values()])).hexdigest()
        self.commits[commit] = content
        self.branches.setdefault(identifier, {})[branch] = commit
        for name, text in content.items():
            self.files[f"{identifier}/resolve/{commit}/{name}"] = text
        return commit

    def downloads(self) -> list[str]:
        """The files that were asked for, by name."""
        return [path.rpartition("/")[2] for path, _ in self.asked if "/resolve/" in path and "HEAD" not in path]


class HubRequest(web.Request):
    server_of: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlparse(self.path).path.lstrip("/")
        self.path = f"/{path}"
        found = re.fullmatch(r"(?:api/models/)?([\w.-]+/[\w.-]+?)(?:/(revision|tree|resolve)/([^/]+)(?:/(.*))?)?", path)
        if self.command == "HEAD":
            self.server_of.asked.append((f"HEAD {path}", ""))
        if found is None:
            return self.head(404, 0)
        identifier, route, revision, name = found.groups()
        if identifier in self.server_of.refused or identifier not in self.server_of.branches:
            code, said = self.server_of.refused.get(identifier, (401, "RepoNotFound"))
            return self.head(code, 0, X_Error_Code=said, X_Error_Message="no")
        branches = self.server_of.branches[identifier]
        commit = branches.get(revision or "main", revision)
        if commit not in self.server_of.commits:
            return self.head(404, 0, X_Error_Code="RevisionNotFound", X_Error_Message="no")
        files = self.server_of.commits[commit]
        if route == "resolve":
            return self._file(identifier, commit, name or "", files)
        if self.command == "GET":
            self.server_of.asked.append((path, ""))
        if route == "tree":
            return self._json([{"type": "file", "path": n, **_entry(text)} for n, text in files.items()])
        return self._json({"id": identifier, "sha": commit, "siblings": [{"rfilename": n} for n in files]})

    def _file(self, identifier: str, commit: str, name: str, files: dict[str, bytes]) -> None:
        if name not in files:
            return self.head(404, 0, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        self.path = f"/{identifier}/resolve/{commit}/{name}"
        etag = f'"{_entry(files[name])["oid"]}"'
        if self.command == "HEAD":
            return self.head(200, len(files[name]), ETag=etag, X_Repo_Commit=commit, Accept_Ranges="bytes")
        self.server_of.asked.append((self.path.lstrip("/"), self.headers.get("Range", "")))
        plan = self.server_of.plan.get(name, [])
        with suppress(ConnectionError):
            (plan.pop(0) if plan else web.version(etag))(self)
        self.close_connection = True
        return None

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.head(200, len(body), Content_Type="application/json")
        self.wfile.write(body)


def _entry(content: bytes) -> dict[str, Any]:
    """What the hub says of a file: its size, and git's hash of it."""
    return {"size": len(content), "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}


def ask(address: str, patch: pytest.MonkeyPatch) -> None:
    """Have `huggingface_hub` of this process ask another address."""
    patch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def serving(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Serve a hub, and have `huggingface_hub` ask it, here and in processes that are started, with its own cache."""
    here = Hub()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubRequest,), {"server_of": here}))
    http.daemon_threads = True
    here.address = f"http://127.0.0.1:{http.server_address[1]}"
    ask(here.address, patch)
    for name, value in {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": False}.items():
        patch.setattr(huggingface_hub.constants, name, value)
    for name, value in {"HF_ENDPOINT": here.address, "HF_HUB_CACHE": str(cache)}.items():
        patch.setenv(name, value)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        patch.delenv(name, raising=False)
    with web.running(http, here.release):
        yield here
