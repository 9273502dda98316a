"""`envrl data list|get|check NAME`: downloaded data: what there is, getting it, checking it."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from envrl.cli.arguments import Parser, number, whole_number
from envrl.errors import Interrupted, UserError, suggest

_ACTIONS = ("list", "get", "check")


def run(arguments: Sequence[str]) -> int:
    """List the data sets, get one, or check one; status 1 where what lies there is not what it should be."""
    values = _parser().parse(arguments)
    if values.action not in _ACTIONS:
        raise UserError(f"unknown action '{values.action}'{suggest(values.action, _ACTIONS)}")
    if values.action == "list":
        print("\n\n".join(_described(name) for name in ([values.name] if values.name else _names())))
        return 0
    if not values.name:
        raise UserError(f"'envrl data {values.action}' needs the name of a data set: {' or '.join(_names())}")
    return _get(values) if values.action == "get" else _check(values)


def _parser() -> Parser:
    parser = Parser("data", "Downloaded data: what there is, getting it, checking it.", usage="list|get|check [NAME]")
    parser.add_argument("action", metavar="list|get|check", help="list them, get one, or check the one that is here")
    parser.add_argument("name", metavar="NAME", nargs="?", default="", help="the data set: alfworld or webshop")
    parser.add_argument("--data", metavar="DIR", help="its folder (default: its environment variable's, or a default)")
    parser.add_argument(
        "--from", dest="source", metavar="URL|FOLDER", help="get: where the files lie, if not originals"
    )
    parser.add_argument("--full", action="store_true", help="get: the large files too (webshop: 5.7 GB)")
    parser.add_argument("--unverified", action="store_true", help="get: take other files than those known")
    parser.add_argument("--timeout", metavar="S", type=_seconds, help="get: seconds without a byte (default: 30)")
    parser.add_argument("--tries", metavar="N", type=_tries, help="get: failures in a row to give up at (default: 6)")
    parser.add_argument("--record", action="store_true", help="check: record what is here, for later checks")
    return parser


def _get(values: argparse.Namespace) -> int:
    from envrl.data.fetch import Patience
    from envrl.data.get import Wish, get
    from envrl.data.sets import find_set

    if values.record:
        raise UserError("--record belongs to 'envrl data check': what 'get' brings is always recorded")
    data = find_set(values.name)
    standard = Patience()
    patience = Patience(values.timeout or standard.stall, values.tries or standard.tries, standard.pause)
    wish = Wish(values.source or "", values.full, not values.unverified, patience)
    folder = _folder(values)
    try:
        home = get(data, folder, wish, _Line())
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {folder} keeps what came, and the same command goes on from there") from None
    print(f"{data.name} lies in {home}")
    if not _is_found(data.name, home):
        from envrl.envs.data import VARIABLES

        print(f"worlds find it with: export {VARIABLES[data.name]}={home}")
    return 0


def _check(values: argparse.Namespace) -> int:
    from envrl.data.check import check
    from envrl.data.inspect import write_record
    from envrl.data.sets import find_set

    given = {"--from": values.source, "--full": values.full, "--unverified": values.unverified}
    given |= {"--timeout": values.timeout, "--tries": values.tries}
    for option, value in given.items():
        if value:
            raise UserError(f"{option} belongs to 'envrl data get'")
    data = find_set(values.name)
    from envrl.envs.data import data_folder

    findings = check(data, data_folder(data.name, values.data or ""))
    print(f"{data.name} in {findings.home}")
    print("\n".join(map(str, findings.verdicts)))
    if values.record:
        if any(part.problem for part in findings.parts.values()):
            raise UserError("what is damaged is not recorded: get it anew")
        write_record(data, findings.home, findings.parts)
        print("recorded")
        return 0
    return 0 if findings.passed else 1


def _names() -> list[str]:
    from envrl.data.sets import SETS

    return list(SETS)


def _described(name: str) -> str:
    from envrl.data.sets import find_set
    from envrl.envs.data import VARIABLES, data_folder
    from envrl.places import default_folder

    data = find_set(name)
    try:
        where = f"{data_folder(name)}"
    except UserError:
        named = os.environ.get(VARIABLES[name])
        where = f"not here; 'envrl data get {name}' would put it in {named or default_folder(name)}"
    lines = [f"{name}: {data.title}"]
    lines += [
        f"  folder    {where}  (${VARIABLES[name]}{' is set' if os.environ.get(VARIABLES[name]) else ' is not set'})"
    ]
    lines += [f"  version   {data.version}", f"  licence   {data.licence}", f"  source    {data.page}"]
    for file in data.files:
        lines.append(f"  file      {file.name}, {file.bytes:,} bytes{', with --full' if file.extra else ''}")
        lines += [f"            SHA-256 {file.sha256}", f"            {file.url}"]
    lines.append("  Sizes and hashes are what users of these files report; their authors publish none.")
    return "\n".join(lines)


def _folder(values: argparse.Namespace) -> Path:
    """Return where data is to be put: as named, whether or not it exists."""
    from envrl.data.sets import find_set
    from envrl.envs.data import VARIABLES
    from envrl.places import default_folder

    named = values.data or os.environ.get(VARIABLES[find_set(values.name).name], "")
    return Path(os.path.expanduser(named)) if named else default_folder(values.name)


def _is_found(name: str, home: Path) -> bool:
    from envrl.envs.data import data_folder

    try:
        return data_folder(name).resolve() in (home.resolve(), *home.resolve().parents)
    except UserError:
        return False


def _seconds(text: str) -> float:
    value = number(text)
    if not value:
        raise argparse.ArgumentTypeError("must be a number above 0, not '0'")
    return value


def _tries(text: str) -> int:
    value = whole_number(text)
    if not value:
        raise argparse.ArgumentTypeError("must be a whole number of at least 1, not '0'")
    return value


class _Line:
    """A download on one line of a terminal, or a line every ten seconds elsewhere; on standard error."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.name, self.began, self.first, self.last = "", 0.0, 0, 0.0

    def show(self, name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if name != self.name:
            self.name, self.began, self.first, self.last = name, now, done, now
        if now - self.last < (0.2 if self.terminal else 10.0):
            return
        self.last = now
        rate = max(done - self.first, 1) / max(now - self.began, 1e-3)
        of = f" of {total / 1e6:,.1f}" if total else ""
        left = f", {max(total - done, 0) / rate:,.0f} s left" if total else ""
        text = f"{name}: {done / 1e6:,.1f}{of} MB, {rate / 1e6:.1f} MB/s{left}"
        print(
            f"\r\x1b[K{text}" if self.terminal else text, end="" if self.terminal else "\n", file=sys.stderr, flush=True
        )

    def say(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self.terminal else text, file=sys.stderr, flush=True)
