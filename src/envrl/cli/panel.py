"""`envrl panel MODEL [PANEL]`: an agent on a pinned set of tasks, as one record that can be had again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from envrl.cli.arguments import Parser, add_plugin, check_output, split_overrides
from envrl.cli.asking import add_chat, add_endpoint, check_with_endpoint, check_without_endpoint, print_so_far
from envrl.cli.words import evaluation_lines
from envrl.errors import UserError
from envrl.panels import Asked, PanelRecord, differences, find_panel, panels, read_record

DEFAULT = "household"
"""The panel that needs no data."""


def run(arguments: Sequence[str]) -> int:
    """Play a panel and write its record, repeat one and say whether its games end as before, or list all panels."""
    settings, rest = split_overrides(arguments)
    for key, _ in settings:
        if key != "model.path":
            raise UserError(f"a panel is pinned, so --{key} cannot be set: 'envrl eval' plays any world and settings")
    values = _parser().parse(rest)
    if values.list:
        print("\n".join(_listed()))
        return 0
    if values.panel is None and values.target in panels():
        name = values.target
        raise UserError(f"'{name}' is a panel: name before it who is to play, envrl panel MODEL {name}")
    return _repeat(values, dict(settings)) if values.repeat is not None else _play(values, dict(settings))


def _play(values: argparse.Namespace, settings: dict[str, str]) -> int:
    if values.target is None:
        raise UserError("name who is to play: envrl panel MODEL [PANEL]; 'envrl panel --list' lists the panels")
    panel = find_panel(values.panel or DEFAULT)
    asked = _asked(values, settings)
    file = values.json or Path(f"panel-{panel.name}.json")
    episodes = _kept_beside(file)

    from envrl.eval.panel import play_panel

    so_far = partial(print_so_far, episodes)
    record = play_panel(panel, asked, plugins=values.plugin, episodes_to=episodes, so_far=so_far)
    _write(record, file)
    print("\n".join(line for result in record.results for line in evaluation_lines(result)))
    pin = "" if panel.sha256 else "; not pinned yet: write it as sha256 into the panel's file"
    print(f"panel {panel.name}, {record.panel.tasks} tasks, SHA-256 {record.panel.sha256}{pin}")
    print(f"written to {file}; 'envrl panel --repeat {file}' plays it again")
    return 0


def _repeat(values: argparse.Namespace, settings: dict[str, str]) -> int:
    before = read_record(values.repeat)
    _check_panel(before, values)
    asked = before.asked
    for name in _ASKED:
        if getattr(values, name, None) is not None and name not in ("target", "data"):
            raise UserError(f"--{name.replace('_', '-')} is said in {values.repeat}: leave it out of a repeat")
    elsewhere = {name: getattr(values, name) for name in ("target", "data") if getattr(values, name) is not None}
    if "model.path" in settings:
        elsewhere["base"] = settings["model.path"]
    if values.json is not None and values.json.resolve() == values.repeat.resolve():
        raise UserError(f"--json {values.json} is the record that is repeated: name another file")
    episodes = _kept_beside(values.json) if values.json is not None else None

    from envrl.eval.panel import play_panel
    from envrl.report.panels import agreement, agreement_lines

    asked, so_far = replace(asked, **elsewhere), partial(print_so_far, episodes)
    after = play_panel(before.panel, asked, before=before, plugins=values.plugin, episodes_to=episodes, so_far=so_far)
    if values.json is not None:
        _write(after, values.json)
    print("\n".join(agreement_lines(before, after)))
    return 1 if agreement(before, after).changed else 0


_ASKED = [each.name for each in fields(Asked)]


def _asked(values: argparse.Namespace, settings: dict[str, str]) -> Asked:
    """Return who plays and how it is asked, checked as far as the options alone say it."""
    if values.base_url is None:
        check_without_endpoint(values)
    else:
        check_with_endpoint(values.actions)
    given = {name: getattr(values, name) for name in _ASKED if name != "base"}
    return Asked(**given, base=settings.get("model.path"))


def _check_panel(before: PanelRecord, values: argparse.Namespace) -> None:
    """Raise `UserError` where a record is of another panel than the one that is named or that ships by that name."""
    panel, known = before.panel, panels()
    if values.panel is not None and values.panel != panel.name:
        find_panel(values.panel)
        raise UserError(f"{values.repeat} is a record of the panel '{panel.name}', not of '{values.panel}'")
    if panel.name in known and (found := differences(known[panel.name], panel)):
        raise UserError(
            f"{values.repeat} is of the panel '{panel.name}' as envrl {before.packages.get('envrl')} had it, which "
            f"differs from this version's in {', '.join(found)}: repeat it with that version"
        )


def _kept_beside(file: Path) -> Path:
    """Return the file that keeps the episodes of a record; raises `UserError` where a record is there already.

    It is there with its episodes where the same command has been given before: only an agent of these is taken then.
    """
    check_output(file, "--json", ".json")
    episodes = file.with_suffix(".episodes.jsonl")
    if file.exists() and not episodes.exists():
        raise UserError(f"{file} is there already, without {episodes}: name another file by --json, or remove it")
    return episodes


def _write(record: PanelRecord, file: Path) -> None:
    from envrl.files import write_text

    write_text(file, record.to_json())


def _listed() -> list[str]:
    known = panels()
    width = max(map(len, known))
    return [
        f"{name:<{width}}  {panel.sha256 or 'not pinned'}  {panel.tasks:>5,} tasks  {panel.about}"
        for name, panel in known.items()
    ]


def _parser() -> Parser:
    parser = Parser(
        "panel",
        "An agent on a pinned set of tasks, as one record (JSON) that says all that is needed to have it again.",
        epilog="docs/evaluation.md says what is pinned; 'envrl compare A.json B.json' compares records of one panel",
    )
    add = parser.add_argument
    add(
        "target",
        metavar="MODEL",
        nargs="?",
        help="a run, a checkpoint, a folder that transformers loads, an id of the hub, or random, walkthrough, expert; "
        "a model's name with --base-url",
    )
    add("panel", metavar="PANEL", nargs="?", help=f"its name, or a TOML file with one (default: {DEFAULT})")
    add("--list", action="store_true", help="list the panels with the SHA-256 of their tasks")
    add(
        "--json",
        metavar="FILE",
        type=Path,
        help="the record to write (default: panel-PANEL.json); its episodes go beside it",
    )
    add("--repeat", metavar="FILE", type=Path, help="play a record again and say which games end otherwise (status 1)")
    add("--data", metavar="DIR", help="the world's downloaded data (default: as docs/data.md says)")
    add("--actions", choices=("admissible", "free"), help="what may be said (default: the run's; of a chat: free)")
    add_plugin(parser)
    add_chat(parser)
    add_endpoint(parser)
    return parser
