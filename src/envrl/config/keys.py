"""The table of all keys of a recipe, read from the schema; descriptions of their types, and parsing of values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from envrl.config.schema import AuxiliaryConfig, Config, RegularizerConfig, RewardConfig, TeacherConfig
from envrl.config.values import usable
from envrl.errors import UserError, suggest
from envrl.older import RETIRED
from envrl.registry import KINDS, TAKEN, find, in_order, names, settings_of


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its dotted name, its type with its range, and its default."""

    name: str
    annotation: Any
    default: Any


def section_types() -> dict[str, type]:
    """Return the dataclass of each section, in the order of the schema."""
    hints = get_type_hints(Config)
    return {f.name: hints[f.name] for f in fields(Config) if is_dataclass(hints[f.name])}


def _keys_of(cls: type, prefix: str) -> dict[str, Key]:
    hints = get_type_hints(cls, include_extras=True)
    return {prefix + f.name: Key(prefix + f.name, hints[f.name], _default(f)) for f in fields(cls)}


def _default(setting: Field[Any]) -> Any:
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def _all_keys() -> dict[str, Key]:
    sections = section_types()
    keys = {name: key for name, key in _keys_of(Config, "").items() if name not in {*sections, "owned"}}
    for section, cls in sections.items():
        keys.update(_keys_of(cls, f"{section}."))
    return keys


KEYS: dict[str, Key] = _all_keys()
TAKEN.update(KEYS)
COMMON: dict[str, dict[str, Key]] = {
    "auxiliary": _keys_of(AuxiliaryConfig, ""),
    "reward": _keys_of(RewardConfig, ""),
    "regularizer": _keys_of(RegularizerConfig, ""),
    "teacher": _keys_of(TeacherConfig, ""),
}
"""The settings that all things of a kind share, by kind."""
SECTIONS: tuple[str, ...] = (*section_types(), *COMMON)


def kind_of(table: str, owner: str) -> str:
    """Return the kind of the thing whose settings are in the table [TABLE.OWNER], or "" if there is none."""
    return next((kind for kind, of in KINDS.items() if table in of.tables and owner in names(kind)), "")


def is_table(name: str) -> bool:
    """Return whether a dotted name is a table: a section, a table of tables, or the table of a registered thing."""
    table, _, owner = name.rpartition(".")
    return name in SECTIONS or any(name in of.tables for of in KINDS.values()) or bool(kind_of(table, owner))


def find_key(name: str) -> Key | None:
    """Return the key of a dotted name, from the schema or from the settings of a registered thing, or None."""
    if name in KEYS or name.count(".") < 2:
        return KEYS.get(name)
    table, owner, _ = name.rsplit(".", 2)
    kind = kind_of(table, owner)
    return keys_of(table, kind, owner).get(name) if kind else None


def keys_of(table: str, kind: str, owner: str) -> dict[str, Key]:
    """Return the keys of the table [TABLE.OWNER] by dotted name: those shared by the kind, then the thing's own.

    A thing may have other defaults of what is shared (`defaults=` in `register`).
    """
    entry = find(kind, owner)
    _check_settings_of(entry.target, entry.called)
    defaults = entry.traits.get("defaults", {})
    return {
        (name := f"{table}.{owner}.{each.name}"): Key(name, each.annotation, defaults.get(each.name, each.default))
        for each in (COMMON.get(kind, {}) | dict(entry.settings)).values()
    }


@cache
def _check_settings_of(target: Any, called: str) -> None:
    """Raise `UserError` for a setting that no recipe can hold: of an unknown type, or with a default of another one."""
    for setting in settings_of(target).values():
        what = f"the setting '{setting.name}' of the {called}"
        try:
            words = describe(setting.annotation)
        except (KeyError, TypeError, IndexError) as error:  # an annotation may be any object
            raise UserError(f"{what} has a type that no recipe can hold: docs/extend.md says which can") from error
        try:
            if not usable(setting.default):
                raise ValueError
            msgspec.convert(setting.default, setting.annotation)
        except ValueError as error:
            raise UserError(f"{what} must be {words}, and its default is {setting.default!r:.40}") from error


def owned_keys(choices: Mapping[str, str], owned: Iterable[str]) -> dict[str, Key]:
    """Return the keys of all tables of registered things in use: those of `choices` (chosen name by choosing key), and
    for kinds of which any number may be in use, those in `owned`."""
    keys: dict[str, Key] = {}
    for kind, of in KINDS.items():
        if of.key:
            keys |= keys_of(of.tables[0], kind, choices[of.key])
            continue
        tables = [name.rsplit(".", 2)[:2] for name in owned]
        for table in of.tables:
            for owner in in_order(kind, {owner for place, owner in tables if place == table}):
                keys |= keys_of(table, kind, owner)
    return keys


def suggest_key(name: str) -> str:
    """Return a hint for an unknown dotted key: the setting's owner, keys with the same last part, or the nearest."""
    section, _, last = name.rpartition(".")
    above, _, owner = section.rpartition(".")
    if kind := kind_of(above, owner):
        settings = [known.rpartition(".")[2] for known in keys_of(above, kind, owner)]
        return f": the {find(kind, owner).called} has no setting '{last}'{suggest(last, settings)}"
    if kind := next((kind for kind, of in KINDS.items() if above in of.tables and not of.key), ""):
        return f": there is no {KINDS[kind].noun} '{owner}'{suggest(owner, names(kind))}"
    if name in RETIRED:
        return f": {RETIRED[name]} took its place"
    if owners := _owners(section, last):
        return f": it is a setting of what is chosen, written {' or '.join(f'{of}.{last}' for of in owners)}"
    namesakes = [known for known in KEYS if known.rpartition(".")[2] == last]
    if namesakes:
        return f"; did you mean {' or '.join(repr(known) for known in namesakes)}?"
    if section in SECTIONS:
        return suggest(name, [known for known in KEYS if known.startswith(f"{section}.")])
    hint = suggest(name, KEYS)
    return hint if "did you mean" in hint else f"; the sections are {', '.join(SECTIONS)}"


def _owners(section: str, setting: str) -> list[str]:
    """Return the tables of a section, such as `objective.gigpo`, whose built-in owner has a setting of this name."""
    return [
        f"{section}.{name}"
        for kind, of in KINDS.items()
        if section in of.tables
        for name in of.built_in
        if setting in find(kind, name).settings
    ]


def describe(annotation: Any) -> str:
    """Return a type and its range in words: `a whole number of at least 1`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(parts[0]) + "".join(_range(meta) for meta in parts[1:] if isinstance(meta, Meta))
    if origin is Literal:
        return f"one of {', '.join(repr(part) for part in parts)}"
    return _plain(annotation)


def _plain(kind: Any) -> str:
    """Return a type in words; raise `KeyError` for one that a recipe cannot hold."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    if get_origin(kind) in (tuple, list):
        return {int: "a list of numbers", float: "a list of numbers", str: "a list of texts"}[get_args(kind)[0]]
    if get_origin(kind) is dict:
        return "a table of numbers, texts, true or false (on the command line JSON)"
    return names[kind]


def _range(meta: Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge:g} to {meta.le:g}"
    low = f"above {meta.gt:g}" if meta.gt is not None else f"of at least {meta.ge:g}" if meta.ge is not None else ""
    high = f"below {meta.lt:g}" if meta.lt is not None else f"at most {meta.le:g}" if meta.le is not None else ""
    if low and high:
        return f" {low} and {high}"
    return f" {low}" if low else f" {'of ' * (meta.le is not None)}{high}" if high else ""


def parse_value(text: str, annotation: Any) -> Any:
    """Parse a command-line value by the key's type; text that does not fit is returned unchanged."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if get_origin(kind) in (tuple, list):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return [_number(part) for part in parts] if get_args(kind)[0] in (int, float) else parts
    if get_origin(kind) is dict:
        return _json(text)
    return _number(text) if kind in (int, float) else text


def _number(text: str) -> int | float | str:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
