"""What a sweep's file asks for: arms times seeds, each a run with a whole configuration.

A placebo arm is added to every arm that has an auxiliary objective: the same losses with exchanged targets. Without it,
a gain of the objective cannot be told from a gain of more, or of other, gradient.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from envrl.config.check import check_together
from envrl.config.load import config_differences, load_layers, override, parse_toml
from envrl.config.quick import quick as made_quick
from envrl.config.schema import Config
from envrl.config.values import show, usable
from envrl.errors import UserError, suggest
from envrl.sweep.studies_index import study_names, study_text

WARM_START = "warm_start"
"""The name of the run that makes the warm start that all arms share."""
PLACEBO = "-placebo"
"""What follows an arm's name in the name of its placebo."""
_TOP = {"recipe": str, "seeds": list, "jobs": int, "placebo": bool, "share_warm_start": bool, "plugins": list}
_TABLES = ("shared", "arms")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")

Overrides = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a sweep; an `arm` of no name is the warm start that all share."""

    name: str
    arm: str
    config: Config


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep: its arms by name with their configurations, whose seed each run sets; `jobs` 0 is not said."""

    name: str
    source: str
    arms: Mapping[str, Config]
    seeds: Mapping[str, tuple[int, ...]]
    """The seeds of each arm."""
    shared: Config | None
    """The run of the shared warm start; None if each run makes its own, or all have a path."""
    jobs: int = 0
    plugins: tuple[str, ...] = ()

    def runs(self, folder: Path) -> list[PlannedRun]:
        """Return the runs of all arms, seed by seed, so that arms can be compared early; `folder` holds the runs."""
        shared = {} if self.shared is None else {"path": str((folder / WARM_START / "warm_start").resolve())}
        return [
            PlannedRun(f"{arm}-{seed}", arm, replace(c, seed=seed, warm_start=replace(c.warm_start, **shared)))
            for seed in dict.fromkeys(seed for seeds in self.seeds.values() for seed in seeds)
            for arm, c in self.arms.items()
            if seed in self.seeds[arm]
        ]

    def warm_start(self) -> PlannedRun | None:
        """Return the run that makes the shared warm start."""
        return None if self.shared is None else PlannedRun(WARM_START, "", self.shared)


def load_sweep(
    name_or_path: str, overrides: Overrides = (), plugins: Sequence[str] = (), *, quick: bool = False
) -> Sweep:
    """Return a sweep, from a TOML file or the name of a built-in one; `overrides` are set in all arms.

    Raises `UserError` for an unknown name, key or arm, and whatever `load_recipe` refuses in an arm.
    """
    text, source, folder = _read(name_or_path)
    table = parse_toml(text, f"the sweep '{source}'")
    _check_table(table, source)
    files = (*plugins, *(str(folder / file) for file in table.get("plugins", ())))
    how = _Reading(table, source, folder, overrides, files, quick)
    base, arms, of_all = how.config({}, ""), _with_placebos(how), table.get("seeds", [0])
    seeds = {arm: tuple(table["arms"][_asked(arm, table["arms"])].get("seeds", of_all)) for arm in arms}
    shares = table.get("share_warm_start") and "warm_start.path" not in dict(overrides)
    shared = _shared_warm_start(base, arms, source, of_all[0]) if shares else None
    name = Path(name_or_path).stem + ("-quick" if quick else "")
    return Sweep(name, name_or_path, arms, seeds, shared, table.get("jobs", 0), files)


def _asked(arm: str, table: Mapping[str, Any]) -> str:
    """Return the name under which an arm is asked for: a placebo that was added has that of its arm."""
    return arm if arm in table else arm.removesuffix(PLACEBO)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A sweep's table, and how its arms become configurations."""

    table: Mapping[str, Any]
    source: str
    folder: Path
    overrides: Overrides
    plugins: Sequence[str]
    quick: bool

    def config(self, arm: Mapping[str, Any], name: str, also: Overrides = ()) -> Config:
        """Return an arm's configuration: recipe, shared keys, its own, the command line's, and `also`."""
        keys = {key: value for key, value in arm.items() if key not in ("extends", "placebo", "seeds")}
        recipe = arm.get("extends", self.table["recipe"])
        if not isinstance(recipe, str) or not recipe or not usable(recipe):
            raise UserError(f"extends must be the name or file of a recipe, not {show(recipe)} ({self.at(name)})")
        for where, part in (("[shared]", self.table.get("shared", {})), (f"[arms.{name}]", keys)):
            if held := [key for key in ("seed", "plugins", "quick") if key in part]:
                raise UserError(
                    f"'{held[0]}' stands in {where} of '{self.source}', and is for all runs: seeds and plugins are "
                    "keys at the top of a sweep, --quick an option"
                )
        layers = [(self.table.get("shared", {}), f"[shared] of '{self.source}'"), (keys, self.at(name))]
        config = load_layers(recipe, layers, [*self.overrides, *also], self.plugins, self.folder)
        if not self.quick:
            return config
        lowered = override(made_quick(config), [*self.overrides, *also])
        check_together(lowered)
        return lowered

    def at(self, name: str) -> str:
        return f"[arms.{name}] of '{self.source}'"


def _with_placebos(how: _Reading) -> dict[str, Config]:
    """Return the arms, each followed by its placebo where it has an auxiliary objective and neither says otherwise."""
    arms: Mapping[str, Any] = how.table["arms"]
    found: dict[str, Config] = {}
    for name, arm in arms.items():
        found[name] = config = how.config(arm, name)
        wanted = arm.get("placebo", how.table.get("placebo", True))
        learned = config.auxiliaries()
        placebo = f"{name}{PLACEBO}"
        if not wanted or not learned or placebo in arms or any(each.common.placebo for each in learned):
            continue
        exchanged = [(f"auxiliary.{each.name}.placebo", "true") for each in learned]
        found[placebo] = how.config(arm, name, exchanged)
    _check_different(found, how.source)
    return found


def _check_different(arms: Mapping[str, Config], source: str) -> None:
    """Raise `UserError` where two arms are the same."""
    named = list(arms.items())
    for number, (name, config) in enumerate(named):
        for other, same in named[:number]:
            if not config_differences(config, same):
                raise UserError(f"the arms '{other}' and '{name}' of '{source}' are the same: leave one out")


def _shared_warm_start(base: Config, arms: Mapping[str, Config], source: str, seed: int) -> Config:
    """Return the run that makes the warm start of all arms: the recipe's, without an update.

    Raises `UserError` where there is nothing to share, or an arm would have another one.
    """
    if base.warm_start.path or not base.warm_start.demonstrations:
        why = "names one by warm_start.path" if base.warm_start.path else "has none (warm_start.demonstrations = 0)"
        raise UserError(f"share_warm_start = true in '{source}', and its recipe {why}: leave that key out")
    for name, config in arms.items():
        parts = ("warm_start.", "model.", "env.")
        if other := [key for key in config_differences(base, config) if key.startswith(parts)]:
            raise UserError(
                f"the arm '{name}' of '{source}' has other values of {', '.join(other)} than the recipe, and all arms "
                "share its warm start: set them in [shared], or share_warm_start = false"
            )
    return replace(base, seed=seed, train=replace(base.train, updates=0))


def _check_table(table: Mapping[str, Any], source: str) -> None:
    """Raise `UserError` for what a sweep's file cannot hold."""
    for key, value in table.items():
        if key in _TABLES:
            if not isinstance(value, dict):
                raise UserError(f"'{key}' in '{source}' is a table, written [{key}], not {show(value)}")
        elif key not in _TOP:
            raise UserError(f"unknown key '{key}' in the sweep '{source}'{suggest(key, [*_TOP, *_TABLES])}")
        elif type(value) is not _TOP[key]:
            raise UserError(f"{key} must be {_WORDS[_TOP[key]]}, not {show(value)} (in '{source}')")
    if "recipe" not in table:
        raise UserError(f"the sweep '{source}' does not name its recipe: put recipe = \"NAME\" at its top")
    if not table.get("arms"):
        raise UserError(f"the sweep '{source}' has no arms: give each a table [arms.NAME], empty for the recipe itself")
    _check_seeds(table.get("seeds", [0]), f"in '{source}'")
    if table.get("jobs", 1) < 1:
        raise UserError(f"jobs must be at least 1, not {table['jobs']} (in '{source}')")
    if not all(isinstance(file, str) and usable(file) for file in table.get("plugins", ())):
        raise UserError(f"plugins must be a list of files, not {show(table['plugins'])} (in '{source}')")
    _check_arms(table["arms"], source)


def _check_arms(arms: Mapping[str, Any], source: str) -> None:
    for name, arm in arms.items():
        if not _NAME.fullmatch(name) or name == WARM_START:
            raise UserError(
                f"an arm cannot be named '{name}' (in '{source}'): letters, digits, '_', '.', '+' and '-' make a name, "
                f"and '{WARM_START}' is the shared one's"
            )
        if not isinstance(arm, dict):
            raise UserError(f"the arm '{name}' in '{source}' is a table, written [arms.{name}], not {show(arm)}")
        if not isinstance(arm.get("placebo", True), bool):
            raise UserError(f"placebo must be true or false, not {show(arm['placebo'])} ([arms.{name}] of '{source}')")
        _check_seeds(arm.get("seeds", [0]), f"[arms.{name}] of '{source}'")


def _check_seeds(seeds: Any, where: str) -> None:
    whole = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds must be whole numbers of at least 0, each once, not {show(seeds)} ({where})")


_WORDS = {str: "a text", list: "a list", int: "a whole number", bool: "true or false"}


def _read(name_or_path: str) -> tuple[str, str, Path]:
    """Return a sweep's text, its name for messages, and the folder that paths in it are relative to."""
    if name_or_path in study_names():
        return study_text(name_or_path), name_or_path, Path()
    path = Path(name_or_path)
    try:
        return path.read_text(encoding="utf-8"), name_or_path, path.parent
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        is_path = path.suffix == ".toml" or len(path.parts) > 1
        what = "there is no sweep file" if is_path else "unknown sweep"
        raise UserError(f"{what} '{name_or_path}'{suggest(path.stem, study_names())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the sweep '{name_or_path}': {error}") from error


def select(runs: Sequence[PlannedRun], only: Sequence[str]) -> list[PlannedRun]:
    """Return the runs of arms, or the single runs, that `only` names; all if it names none; raises `UserError`."""
    known = {name for run in runs for name in (run.name, run.arm) if name}
    for name in only:
        if name not in known:
            raise UserError(f"the sweep has no arm or run '{name}'{suggest(name, known)}")
    return [run for run in runs if not only or run.name in only or run.arm in only]


def flagged(plugins: Sequence[str]) -> Iterator[str]:
    """Yield the options that name plug-ins."""
    for file in plugins:
        yield from ("--plugin", file)
