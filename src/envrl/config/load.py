"""Load a recipe (strict TOML) and values from the command line into a `Config`, and dump a `Config` as TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from envrl.config.check import check_together
from envrl.config.keys import (
    KEYS,
    SECTIONS,
    describe,
    find_key,
    is_table,
    kind_of,
    owned_keys,
    parse_value,
    section_types,
    suggest_key,
)
from envrl.config.plugins import load_plugins, recorded_plugins
from envrl.config.recipes_index import recipe_names, recipe_text
from envrl.config.schema import Config
from envrl.config.values import show, usable
from envrl.errors import UserError, suggest
from envrl.older import in_present_keys
from envrl.registry import KINDS, find, names

_DEEPEST = 50
"""The longest chain of recipes that extend each other."""


@dataclass(frozen=True, slots=True)
class _Setting:
    value: Any
    where: str
    layer: int
    """Its precedence: a recipe has a higher layer than the one it extends, and the command line has the highest."""


def load_recipe(
    name_or_path: str,
    overrides: Sequence[tuple[str, str]] = (),
    plugins: Sequence[str | Path] = (),
    *,
    of_run: bool = False,
) -> Config:
    """Return the configuration of a recipe (a TOML file, or the name of a built-in one) with `overrides` applied.

    `plugins` are a user's files, loaded first, so that the recipe can use what they register. `of_run` also accepts the
    keys of older versions. A file `config.toml` is a run's: what it names as plug-ins is never loaded.

    An override is a dotted key and its value as text; the last one of a key wins. A recipe may extend another with
    `extends = "name or file"` at its top.
    Raises `UserError` for an unknown recipe, section or key, a wrong type, a value out of range, values that contradict
    each other, and invalid TOML.
    """
    named = load_plugins(map(str, plugins))
    settings = _recipe_settings(name_or_path, base=Path(), seen=(), of_run=of_run) | _given(overrides)
    return _config_of(settings, named)


def load_layers(
    recipe: str,
    tables: Sequence[tuple[Mapping[str, Any], str]],
    overrides: Sequence[tuple[str, str]] = (),
    plugins: Sequence[str | Path] = (),
    folder: Path = Path(),
) -> Config:
    """Return the configuration of a recipe with tables of keys on top, each with what messages call it.

    A later table has precedence over an earlier one; `folder` is what the recipe's file and plug-ins in tables are
    relative to. Raises `UserError` as `load_recipe` does.
    """
    named = load_plugins(map(str, plugins))
    settings = _recipe_settings(recipe, base=folder, seen=())
    for table, label in tables:
        settings = _with_table(settings, table, label, folder)
    return _config_of(settings | _given(overrides), named)


def load_table(table: Mapping[str, Any], label: str) -> Config:
    """Return the configuration of a table with every key, as a record of a run holds it, by an older version too."""
    return _config_of(_with_table({}, in_present_keys(dict(table)), label, None), ())


def _config_of(settings: dict[str, _Setting], plugins: Sequence[str]) -> Config:
    """Return the checked configuration of all settings, with plug-ins of the command line."""
    if plugins:
        before = settings["plugins"].value if "plugins" in settings else ()
        settings["plugins"] = _Setting([*dict.fromkeys([*before, *plugins])], "by --plugin", _DEEPEST)
    config = _build({name: _checked(name, setting) for name, setting in _of_what_is_chosen(settings).items()})
    check_together(config)
    return config


def load_run(folder: Path) -> Config:
    """Return the configuration of a run, translated to current keys if an older version made it.

    Raises `UserError` as `load_recipe` does.
    """
    return load_recipe(str(folder / "config.toml"), of_run=True)


def override(config: Config, overrides: Sequence[tuple[str, str]]) -> Config:
    """Return the configuration with keys set as on the command line; contradictions are not checked."""
    settings = {name: _Setting(value, "before", 0) for name, value in flat_values(config).items()} | _given(overrides)
    return _build({name: _checked(name, setting) for name, setting in _of_what_is_chosen(settings).items()})


def _given(overrides: Sequence[tuple[str, str]]) -> dict[str, _Setting]:
    settings: dict[str, _Setting] = {}
    for name, text in overrides:
        if (key := find_key(name)) is None:
            raise UserError(f"unknown key '{name}' on the command line{suggest_key(name)}")
        settings[name] = _Setting(parse_value(text, key.annotation), "on the command line", _DEEPEST)
    return settings


def dump_config(config: Config) -> str:
    """Return the configuration as TOML with every key; `load_recipe` of that text gives an equal configuration."""
    table: dict[str, Any] = {}
    for name, value in flat_values(config).items():
        *sections, last = name.split(".")
        inner = table
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = msgspec.to_builtins(value)
    return tomli_w.dumps(table)


def config_differences(a: Config, b: Config) -> list[str]:
    """Return the dotted keys whose values differ, in the schema's order.

    If they choose different things, the choosing key is the difference, not the settings of those things. Settings of a
    thing that is not chosen by a key (an auxiliary objective) are compared with the defaults if one side lacks them.
    """
    ours, theirs = flat_values(a), flat_values(b)
    known = [name for name in ours | theirs if (name in ours and name in theirs) or not _is_chosen(name)]
    return [name for name in known if _value(name, ours) != _value(name, theirs)]


def _is_chosen(name: str) -> bool:
    """Return whether a key is a setting of a thing that another key chooses."""
    table, _, _ = name.rsplit(".", 2)
    return any(of.key and table in of.tables for of in KINDS.values())


def _value(name: str, values: Mapping[str, Any]) -> Any:
    key = find_key(name)
    return values.get(name, key and key.default)


def _recipe_settings(
    name_or_path: str, base: Path, seen: tuple[str, ...], of_run: bool = False, recorded: bool = False
) -> dict[str, _Setting]:
    """Return the settings of a recipe on top of those of the recipes it extends; paths are relative to `base`.

    Plug-ins are not loaded if they are `recorded`: those of a run, and of what it extends.
    """
    text, label, folder = _read(name_or_path, base)
    recorded = recorded or Path(name_or_path).name == "config.toml"
    if len(seen) == _DEEPEST:
        raise UserError(f"recipes extend each other more than {_DEEPEST} deep, at {label}")
    if label in seen:
        raise UserError(f"recipes extend each other in a circle: {' -> '.join([*seen, label])}")
    table = parse_toml(text, label)
    settings: dict[str, _Setting] = {}
    extends = table.pop("extends", None)
    if extends is not None:
        if not isinstance(extends, str) or not extends or not usable(extends):
            raise UserError(f"extends must be the name or file of another recipe, not {show(extends)} (in {label})")
        settings = _recipe_settings(extends, folder, (*seen, label), recorded=recorded)
    return _with_table(settings, in_present_keys(table) if of_run else table, label, None if recorded else folder)


def _with_table(
    settings: Mapping[str, _Setting], table: Mapping[str, Any], label: str, folder: Path | None
) -> dict[str, _Setting]:
    """Return the settings with those of a table on top, in a layer of their own; plug-ins are added to those before.

    Plug-ins are relative to the folder; if there is none, a run or a record names them, and none is loaded.
    """
    table = dict(table)
    if (files := table.get("plugins")) is not None:
        if not (isinstance(files, list) and all(isinstance(file, str) and usable(file) for file in files)):
            raise UserError(f"plugins must be a list of texts, not {show(files)} (in {label})")
        before = settings["plugins"].value if "plugins" in settings else ()
        named = recorded_plugins(files) if folder is None else load_plugins(files, folder)
        table["plugins"] = [*dict.fromkeys([*before, *named])]
    layer = max((setting.layer for setting in settings.values()), default=-1) + 1
    return {**settings, **{name: _Setting(value, f"in {label}", layer) for name, value in _flatten(table, label)}}


def _of_what_is_chosen(settings: Mapping[str, _Setting]) -> dict[str, _Setting]:
    """Return the settings, without those of things that a later layer replaced by another choice.

    Raises `UserError` for a setting of a thing that is not chosen, unless a later layer made that choice.
    """
    remaining = dict(settings)
    for name, setting in settings.items():
        if name in KEYS:
            continue
        table, owner, _ = name.rsplit(".", 2)
        kind = kind_of(table, owner)
        chosen_by = KINDS[kind].key
        if not chosen_by:
            continue
        choice = settings.get(chosen_by, _Setting(KEYS[chosen_by].default, "by default", -1))
        if choice.value == owner:
            continue
        del remaining[name]
        if setting.layer >= choice.layer:
            raise UserError(
                f"{name} ({setting.where}) sets the {find(kind, owner).called}, and {KINDS[kind].key} = "
                f"{show(choice.value)} is chosen ({choice.where}): leave it out, or choose that one"
            )
    return remaining


def _read(name_or_path: str, base: Path) -> tuple[str, str, Path]:
    """Return a recipe's text, its name for messages, and the folder that its own paths are relative to."""
    names = recipe_names()
    if name_or_path in names:
        return recipe_text(name_or_path), f"recipe '{name_or_path}'", base
    path = base / name_or_path
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        is_path = name_or_path.endswith(".toml") or len(path.parts) > 1
        what = "there is no recipe file" if is_path else "unknown recipe"
        raise UserError(f"{what} '{name_or_path}'{suggest(path.stem, names)}") from error
    except OSError as error:
        raise UserError(f"cannot read the recipe '{path}': {error.strerror}") from error
    try:
        return data.decode("utf-8"), f"'{path}'", path.parent
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"the recipe '{path}' is not UTF-8 text (at line {line})") from error


def parse_toml(text: str, label: str) -> dict[str, Any]:
    """Return the table of a TOML text; raise `UserError`, which names the text by its label, if it is none."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = text.rstrip("\n").count("\n") + 1
        message = str(error).replace("(at end of document)", f"(at line {line}, the end of the file)")
        raise UserError(f"{label} is not valid TOML: {message}") from error
    except RecursionError as error:
        raise UserError(f"{label} is not a recipe: its values are nested too deeply") from error
    except ValueError as error:  # a number with more digits than Python reads
        raise UserError(f"{label} is not a recipe: {str(error).partition(';')[0]}") from error


def _flatten(table: Mapping[str, Any], label: str, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a recipe's table with their values; raise `UserError` for an unknown key."""
    for last, value in table.items():
        name = f"{above}.{last}" if above else last
        if is_table(name):
            if not isinstance(value, dict):
                raise UserError(
                    f"'{name}' is a section, written [{name}], not a key with the value {show(value)} (in {label})"
                )
            yield from _flatten(value, label, name)
        elif isinstance(value, dict) and name not in KEYS:
            what, known = ("table", _tables(above)) if above else ("section", SECTIONS)
            raise UserError(f"unknown {what} [{name}] in {label}{suggest(name, known)}")
        elif find_key(name) is None:
            raise UserError(f"unknown key '{name}' in {label}{suggest_key(name)}")
        else:
            yield name, value


def _tables(above: str) -> list[str]:
    """Return the possible subtables of a table, one for each registered thing that belongs there."""
    return [f"{above}.{name}" for kind, of in KINDS.items() if above in of.tables for name in names(kind)]


def _checked(name: str, setting: _Setting) -> Any:
    """Return a value converted to its key's type; raise `UserError` for a wrong type or a value out of range."""
    key = find_key(name)
    assert key is not None, name
    annotation = key.annotation
    if usable(setting.value):
        try:
            return msgspec.convert(setting.value, annotation)
        except msgspec.ValidationError:
            pass
    raise UserError(f"{name} must be {describe(annotation)}, not {show(setting.value)} ({setting.where})")


def _build(values: Mapping[str, Any]) -> Config:
    sections = {
        section: cls(**{f.name: values[k] for f in fields(cls) if (k := f"{section}.{f.name}") in values})
        for section, cls in section_types().items()
    }
    plain = {name: value for name, value in values.items() if "." not in name}
    owned = {name: values[name] for name in values if name not in KEYS}
    rest = {name: value for name, value in owned.items() if (key := find_key(name)) and value != key.default}
    return Config(**sections, **plain, owned=rest)


def flat_values(config: Config) -> dict[str, Any]:
    """Return the value of every dotted key: first the schema's, in its order, then those of registered things."""

    def value(name: str) -> Any:
        section, _, last = name.rpartition(".")
        return getattr(getattr(config, section) if section else config, last)

    values = {name: value(name) for name in KEYS}
    keys = owned_keys({of.key: values[of.key] for of in KINDS.values() if of.key}, config.owned)
    return values | {name: config.owned.get(name, key.default) for name, key in keys.items()}
