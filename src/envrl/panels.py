"""Panels: named sets of tasks, pinned by a hash, with the settings of their evaluation; and the records of models.

A record (one JSON file) says all that is needed to play its episodes again.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from envrl.errors import UserError, suggest

VERSION = 1
"""Of the form of records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A set of tasks and how they are played: `episodes` spread over each split (0: all of it), in a fixed order.

    `needs` names the downloaded data that the tasks are in, `settings` are further keys of `[env]`; `sha256` is
    `contents_sha256` of the set (empty: not pinned), of `tasks` tasks.
    """

    name: str = ""
    about: str = ""
    env: str
    splits: tuple[str, ...]
    needs: str = ""
    max_steps: int
    episodes: int = 0
    temperature: float = 0.4
    seed: int = 0
    settings: dict[str, bool | int | float | str] = field(default_factory=dict)
    tasks: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who is evaluated and how it is asked, as the user said it; None (or empty): left to the evaluation's defaults.

    `target` and the other names are those of `envrl.evaluate` and of `envrl.eval.client.Endpoint`; `base` is where the
    base model of a LoRA checkpoint lies.
    """

    target: str
    data: str | None = None
    base: str | None = None
    actions: str | None = None
    format: str | None = None
    show_admissible: bool | None = None
    history: int | None = None
    max_tokens: int | None = None
    system_message: str | None = None
    template_arguments: dict[str, Any] | None = None
    base_url: str | None = None
    key_variable: str | None = None
    concurrency: int | None = None
    timeout: float | None = None
    retries: int | None = None

    def given(self, *names: str) -> dict[str, Any]:
        """Return those of the fields that are not None."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an episode ended; `commands` is the start of a SHA-256 over its commands."""

    split: str
    task: str
    member: int
    kind: str
    success: bool
    stop_reason: str
    steps: int
    score: float
    commands: str

    @property
    def who(self) -> tuple[str, str, int]:
        return self.split, self.task, self.member


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelRecord:
    """A model on a panel.

    `panel` has the hash of the set that was played. `agent` says which weights answered (their hash, the revision),
    `prompt` how they were asked (with the text of an example, and a SHA-256 of it), `sampling` how they were sampled.
    `results` are the records of `envrl.evaluate`, one a split.
    """

    version: int
    panel: Panel
    asked: Asked
    agent: dict[str, Any]
    prompt: dict[str, Any]
    sampling: dict[str, Any]
    packages: dict[str, str]
    machine: dict[str, Any]
    results: list[dict[str, Any]]
    outcomes: list[Outcome]

    def to_json(self) -> str:
        """Return the record as JSON, an outcome a line; what was not asked for is left out."""
        record = asdict(self)
        record["asked"] = {name: value for name, value in record["asked"].items() if value is not None}
        outcomes = record.pop("outcomes")
        head = json.dumps(record, indent=1, ensure_ascii=False).removesuffix("\n}")
        lines = ",\n".join(f"  {json.dumps(each, ensure_ascii=False)}" for each in outcomes)
        return f'{head},\n "outcomes": [\n{lines}\n ]\n}}\n'


def panels() -> dict[str, Panel]:
    """Return the panels that ship, by name."""
    tables = tomllib.loads(files("envrl").joinpath("panels.toml").read_text(encoding="utf-8"))
    return {name: _panel(name, table) for name, table in tables.items()}


def find_panel(name: str) -> Panel:
    """Return a panel that ships, or the one of a TOML file; raises `UserError` where there is none of that name."""
    if not name.endswith(".toml"):
        known = panels()
        if name not in known:
            raise UserError(f"unknown panel '{name}'{suggest(name, known)}")
        return known[name]
    file = Path(name)
    try:
        return _panel(file.stem, tomllib.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"there is no panel file '{name}'") from None
    except (OSError, ValueError) as error:  # what TOML and msgspec raise are ValueErrors
        raise UserError(f"'{name}' is no panel: {' '.join(str(error).split())}") from None


def read_record(file: Path) -> PanelRecord:
    """Return the record of a file; raises `UserError` where it holds none, or one of another version's form."""
    how = "'envrl panel MODEL --json FILE' writes them"
    try:
        record = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"there is no file {file}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not readable ({' '.join(str(error).split())[:100]}): {how}") from None
    if not isinstance(record, Mapping) or "panel" not in record:
        raise UserError(f"{file} does not hold the record of a panel: {how}")
    if record.get("version") != VERSION:
        raise UserError(
            f"{file} is a record of form {record.get('version')!r}, and this version of envrl reads form {VERSION}: "
            f"take the version of envrl that wrote it ({(record.get('packages') or {}).get('envrl', 'not said')})"
        )
    try:
        return msgspec.convert(record, PanelRecord)
    except msgspec.ValidationError as error:
        raise UserError(f"{file} does not hold the record of a panel ({error}): {how}") from None


def is_record(file: Path) -> bool:
    """Return whether a file is JSON with a panel in it, of any version."""
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, Mapping) and "panel" in record


def differences(one: Panel, other: Panel) -> list[str]:
    """Return in what two panels differ, `max_steps (30, 50)`; not in what they say of themselves."""
    names = [each.name for each in fields(Panel) if each.name not in ("name", "about", "needs", "tasks")]
    values = [(name, getattr(one, name), getattr(other, name)) for name in names]
    return [f"{name} ({_short(a)}, {_short(b)})" for name, a, b in values if a != b]


def of_same_tasks(records: Sequence[tuple[str, PanelRecord]]) -> None:
    """Raise `UserError` where two records are not of the same tasks, played alike; with the name of each."""
    first, *others = records
    for name, record in others:
        if found := differences(first[1].panel, record.panel):
            raise UserError(
                f"{first[0]} is of the panel '{first[1].panel.name}' and {name} of '{record.panel.name}', which differ "
                f"in {', '.join(found)}: records are compared on the same tasks, played alike"
            )
        if {each.who for each in record.outcomes} != {each.who for each in first[1].outcomes}:
            raise UserError(f"{first[0]} and {name} do not hold the same episodes: one of them is not whole")


def _panel(name: str, table: Mapping[str, Any]) -> Panel:
    known = {each.name for each in fields(Panel)} - {"name"}
    if other := [key for key in table if key not in known]:
        raise ValueError(f"unknown key '{other[0]}'{suggest(other[0], known)}")
    return msgspec.convert({**table, "name": name}, Panel)


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text or "none"
