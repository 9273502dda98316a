"""A parser for one command whose every complaint is one sentence, with the nearest option where one is unknown."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from envrl.errors import UserError, suggest


class Parser(argparse.ArgumentParser):
    """The arguments of `envrl COMMAND`; `parse` raises `UserError` where `argparse` would print usage and exit."""

    def __init__(self, command: str, description: str, *, usage: str = "", epilog: str = "") -> None:
        prog = f"envrl {command}"
        usage = f"{prog} {usage}" if usage else ""
        super().__init__(prog, usage=usage or None, description=description, epilog=epilog, allow_abbrev=False)

    def parse(self, arguments: Sequence[str], also: Iterable[str] = ()) -> argparse.Namespace:
        """Return the values of the arguments; raises `UserError` for any that is missing, unknown or malformed.

        `also` are further options that the user may have meant.
        """
        values, unknown = self.parse_known_args(arguments)
        if unknown:
            name = unknown[0].partition("=")[0]
            if not name.startswith("-"):
                self.error(f"unexpected argument '{name}'")
            near = suggest(name, [option for option in [*self.options(), *also] if option != name])
            self.error(f"unknown option '{name}'{near if 'did you mean' in near else suggest(name, self.options())}")
        return values

    def options(self) -> list[str]:
        """Return the long options of this command."""
        return [option for action in self._actions for option in action.option_strings if option.startswith("--")]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ('{self.prog} --help' shows what it takes)")


def whole_number(text: str) -> int:
    """Read a whole number of at least 0."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, not '{text}'")
    return int(text)


def number(text: str) -> float:
    """Read a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not '{text}'")
    return value


def names(text: str) -> tuple[str, ...]:
    """Read names separated by commas."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"must be names separated by commas, each once, not '{text}'")
    return parts


def split_overrides(arguments: Sequence[str], plain: Collection[str] = ()) -> tuple[list[tuple[str, str]], list[str]]:
    """Split the arguments into settings of recipe keys (`--train.updates 3`, `--train.updates=3`) and all others.

    `plain` are the keys without a section that are meant too. Raises `UserError` for a key without a value.
    """
    overrides: list[tuple[str, str]] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or ("." not in name and name not in plain):
            rest.append(argument)
            continue
        if not equals:
            value = next(remaining, "--")
            if value.startswith("--"):
                raise UserError(f"--{name} needs a value after it")
        overrides.append((name, value))
    return overrides, rest


def add_plugin(parser: Parser) -> None:
    """Have a command take `--plugin FILE.py`, once or several times."""
    parser.add_argument(
        "--plugin",
        metavar="FILE.py",
        action="append",
        default=[],
        help="a Python file that registers further worlds, estimators, losses (docs/extend.md); can be repeated",
    )


def world_settings(overrides: Sequence[tuple[str, str]], worlds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the settings of worlds by name and key, from `--env.NAME.KEY value`; raises `UserError` for other keys."""
    from envrl.build import env_options
    from envrl.config.load import override
    from envrl.config.schema import Config

    found: dict[str, dict[str, Any]] = {name: {} for name in worlds}
    for key, _ in overrides:
        if not any(key.startswith(f"env.{name}.") for name in worlds):
            raise UserError(f"--{key} is no setting of the world: those are --env.{worlds[0]}.KEY (docs/recipes.md)")
    for name in worlds:
        own = [(key, value) for key, value in overrides if key.startswith(f"env.{name}.")]
        if own:
            given = {key.rpartition(".")[2] for key, _ in own}
            options = env_options(override(Config(), [("env.name", name), *own]))
            found[name] = {key: value for key, value in options.items() if key in given}
    return found


def check_output(path: Path, option: str, suffix: str = "") -> None:
    """Raise `UserError` now where results could not be written later, or under a name of another format."""
    folder = path.parent
    if suffix and path.suffix != suffix:
        raise UserError(f"{option} writes {suffix[1:].upper()}; name a file that ends with {suffix}, not '{path}'")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; name a file")
    if not folder.is_dir():
        raise UserError(f"the folder of {option} {path} does not exist; make {folder} first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path} cannot be written: no permission in {folder}")


def check_picture(path: Path) -> None:
    """Raise `UserError` now where `--picture` could not be drawn or written later."""
    from envrl.report.drawing import check_matplotlib
    from envrl.report.style import PICTURES

    if path.suffix not in PICTURES:
        raise UserError(
            f"--picture draws SVG, PDF or PNG; name a file that ends with one of {', '.join(PICTURES)}, not '{path}'"
        )
    check_output(path, "--picture")
    check_matplotlib("--picture")
