"""The one registry: every kind of thing that a recipe chooses by name, each with the settings that its signature has.

A thing is built in, comes with an installed package (entry points `envrl.<kind>s`), from a file of the user's
(`load_plugin`), or is registered by the program that imports envrl. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tokenize
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, TypeVar, get_type_hints

from envrl.errors import UserError, suggest

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing: what it is called, the key that chooses one, and the built-in ones as "module:name".

    A thing has its settings in a table of its name, `[objective.gigpo]`, behind one of `tables`. Where no key chooses,
    any number may be in use.
    """

    noun: str
    key: str
    tables: tuple[str, ...]
    group: str
    built_in: Mapping[str, str]
    reserved: tuple[str, ...] = ()
    """Names that none of them may have."""

    @property
    def one(self) -> str:
        return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"


KINDS = {
    "env": Kind(
        "world",
        "env.name",
        ("env",),
        "envrl.envs",
        {
            "alfworld": "envrl.envs.household.world:alfworld",
            "alfworld-textworld": "envrl.envs.household.original:alfworld_textworld",
            "babyai": "envrl.envs.adapters.babyai:babyai",
            "frozenlake": "envrl.envs.adapters.frozen_lake:frozen_lake",
            "household": "envrl.envs.household.world:household",
            "mixture": "envrl.envs.mixture:Mixture",
            "household-textworld": "envrl.envs.household.original:household_textworld",
            "scienceworld": "envrl.envs.adapters.scienceworld_world:scienceworld",
            "sokoban": "envrl.envs.adapters.sokoban:sokoban",
            "textworld": "envrl.envs.adapters.textworld_world:textworld",
            "webshop": "envrl.envs.webshop.world:webshop",
        },
    ),
    "estimator": Kind(
        "advantage estimator",
        "objective.estimator",
        ("objective",),
        "envrl.estimators",
        {name: f"envrl.objective.advantage:{name}" for name in ("grpo", "rloo", "gigpo")},
    ),
    "loss": Kind(
        "policy loss",
        "objective.loss",
        ("objective",),
        "envrl.losses",
        {name: f"envrl.objective.policy:{name}" for name in ("ppo", "gspo", "cispo")},
    ),
    "auxiliary": Kind(
        "auxiliary objective",
        "",
        ("auxiliary", "warm_start.auxiliary"),
        "envrl.auxiliaries",
        {name: f"envrl.objective.auxiliary.{name}:{name}" for name in ("state", "inverse", "echo")},
        reserved=("entropy", "imitation", "kl", "policy", "value"),
    ),
    "format": Kind(
        "prompt format",
        "rollout.format",
        ("rollout",),
        "envrl.formats",
        {
            name: f"envrl.rendering.prompts:{name}_format"
            for name in ("marks", "tags", "action", "react", "json", "plan")
        },
    ),
    "curriculum": Kind(
        "curriculum",
        "curriculum.name",
        ("curriculum",),
        "envrl.curricula",
        {"shuffle": "envrl.curriculum:Shuffle"},
    ),
    "engine": Kind(
        "engine",
        "train.engine",
        ("train",),
        "envrl.engines",
        {name: f"envrl.engine.protocol:{name}" for name in ("local", "sharded")},
    ),
    "sampler": Kind(
        "sampler",
        "rollout.sampler",
        ("rollout",),
        "envrl.samplers",
        {
            "own": "envrl.rollout.sampler:own",
            "endpoint": "envrl.eval.endpoint_sampler:EndpointSampler",
        },
    ),
    "replay": Kind(
        "replay",
        "replay.name",
        ("replay",),
        "envrl.replays",
        {"none": "envrl.replay:NoReplay"},
    ),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A keyword-only parameter of a thing: what a recipe can set of it. `meaning` is the comment behind it."""

    name: str
    annotation: Any
    default: Any
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered thing: `traits` are what its decorator says of it, `file` that of the plug-in that it is from."""

    kind: str
    name: str
    target: Callable[..., Any]
    traits: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""

    @property
    def settings(self) -> Mapping[str, Setting]:
        """What its signature lets be set, by name."""
        return settings_of(self.target)

    @property
    def called(self) -> str:
        return f"{KINDS[self.kind].noun} '{self.name}'"

    @property
    def ships(self) -> bool:
        """Whether it is one of ours."""
        return self.name in KINDS[self.kind].built_in

    @property
    def known_by_name(self) -> bool:
        """Whether another process finds it by its name alone."""
        return self.ships or self.name in _points(self.kind)


TAKEN: set[str] = set()
"""Dotted keys of every recipe: no table can have such a name."""
_ENTRIES: dict[tuple[str, str], Entry] = {}
_LOADING: list[tuple[str, list[Entry]]] = []
"""Files of plug-ins that are being imported, the innermost last, each with what it has registered so far."""


def register(kind: str, name: str, **traits: Any) -> Callable[[T], T]:
    """Make a function or class the thing `name` of a kind; its keyword-only parameters are its settings.

    Raises `UserError` for an unknown kind, a name that is no word, and one that is taken.
    """
    if kind not in KINDS:
        raise UserError(f"there is no kind of thing '{kind}' to register{suggest(kind, KINDS)}")
    if not re.fullmatch(r"[A-Za-z][\w+-]*", name):
        raise UserError(f"the name of a registered {KINDS[kind].noun} is a word, not '{name}'")
    if name in KINDS[kind].reserved:
        raise UserError(f"no {KINDS[kind].noun} can be named '{name}': every run has a loss of that name")

    def decorate(target: T) -> T:
        file = _LOADING[-1][0] if _LOADING else ""
        entry = Entry(kind, name, target, traits, file)  # type: ignore[arg-type]
        _check_free(entry)
        _ENTRIES[kind, name] = entry
        if _LOADING:
            _LOADING[-1][1].append(entry)
        return target

    return decorate


def _check_free(entry: Entry) -> None:
    place = f"{getattr(entry.target, '__module__', '')}:{getattr(entry.target, '__qualname__', '')}"
    known = _ENTRIES.get((entry.kind, entry.name))
    of_ours = entry.ships and KINDS[entry.kind].built_in[entry.name] != place
    if of_ours or (known and known.target is not entry.target):
        raise UserError(
            f"there is already {KINDS[entry.kind].one} named '{entry.name}'; register yours under another name"
        )
    for key in (f"{table}.{entry.name}" for table in KINDS[entry.kind].tables):
        if key in TAKEN:
            raise UserError(f"there is a key {key}, so no {KINDS[entry.kind].noun} can be named '{entry.name}'")
    if entry.ships:  # to look at what is installed takes time, and ours have names of their own
        return
    for kind, other in KINDS.items():
        if kind != entry.kind and other.tables == KINDS[entry.kind].tables and entry.name in names(kind):
            raise UserError(
                f"there is already {other.one} '{entry.name}', and [{other.tables[0]}.{entry.name}] is the table of "
                "its settings: register yours under another name"
            )


def names(kind: str) -> list[str]:
    """Return the names of a kind, sorted."""
    return sorted({*KINDS[kind].built_in, *(name for of, name in _ENTRIES if of == kind), *_points(kind)})


def in_order(kind: str, chosen: Iterable[str]) -> list[str]:
    """Return these names of a kind in an order that does not depend on how they were written: ours first."""
    ours = list(KINDS[kind].built_in)
    return sorted(chosen, key=lambda name: (ours.index(name) if name in ours else len(ours), name))


def find(kind: str, name: str) -> Entry:
    """Return the thing of this name, imported where it is not yet.

    Raises `UserError` where there is none, `CannotImport` where it belongs to a package that cannot be imported.
    """
    if (kind, name) not in _ENTRIES:
        if place := KINDS[kind].built_in.get(name):
            module, _, attribute = place.partition(":")
            target = getattr(importlib.import_module(module), attribute)
            _ENTRIES.setdefault((kind, name), Entry(kind, name, target))  # its module may have, with traits
        else:
            if name not in _points(kind):
                _points.cache_clear()  # it may have been installed since
            if name not in _points(kind):
                raise UserError(f"unknown {KINDS[kind].noun} '{name}'{suggest(name, names(kind))}")
            _load_point(kind, _points(kind)[name])
    return _ENTRIES[kind, name]


class CannotImport(UserError):
    """A thing of an installed package cannot be imported."""


@cache
def _points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=KINDS[kind].group)}


def _load_point(kind: str, point: EntryPoint) -> None:
    try:
        target = point.load()
    except Exception as error:  # a package may raise anything while it is imported
        raise CannotImport(
            f"the {KINDS[kind].noun} '{point.name}' is '{point.value}', which cannot be imported "
            f"({type(error).__name__}: {error})"
        ) from error
    _ENTRIES.setdefault((kind, point.name), Entry(kind, point.name, target))  # its module may have, with traits


def load_plugin(file: Path) -> str:
    """Import a file of the user's and keep what it registers; return its SHA-256. A file is imported once.

    Raises `UserError` where it is not there, does not parse, raises, or registers nothing; nothing of it is kept then.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"the plug-in '{file}' cannot be read: {error.strerror}") from error
    digest = sha256(data).hexdigest()
    if digest not in _LOADED:
        _LOADED[digest] = _import(file, data, digest)
    return digest


_LOADED: dict[str, list[Entry]] = {}
"""What files of plug-ins have registered, by their SHA-256."""


def _import(file: Path, data: bytes, digest: str) -> list[Entry]:
    """Run what was hashed, and no cache of its bytecode; return what it registered."""
    name = f"envrl_plugin_{digest[:16]}"
    if file.suffix != ".py":
        raise UserError(f"the plug-in '{file}' is no Python file: its name ends with .py")
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    with _undone(name) as made:
        _LOADING.append((str(file), made))
        try:
            exec(compile(data, str(file), "exec"), module.__dict__)
        except UserError as error:
            raise UserError(f"the plug-in '{file}': {error}") from error
        except SyntaxError as error:
            where = f"line {error.lineno}: " if error.lineno else ""
            raise UserError(f"the plug-in '{file}' is not Python ({where}{error.msg})") from error
        except Exception as error:  # a user's file may raise anything
            raise UserError(f"the plug-in '{file}' cannot be imported ({type(error).__name__}: {error})") from error
        finally:
            _LOADING.pop()
        if not made:
            how = "envrl.register(kind, name) above a function does"
            raise UserError(f"the plug-in '{file}' registers nothing: {how}")
    return made


@contextmanager
def _undone(module: str) -> Iterator[list[Entry]]:
    """Keep nothing of a module, or of what it registers into this list, where the block raises."""
    made: list[Entry] = []
    try:
        yield made
    except BaseException:
        sys.modules.pop(module, None)
        for entry in made:
            _ENTRIES.pop((entry.kind, entry.name), None)
        raise


@cache
def settings_of(target: Callable[..., Any]) -> Mapping[str, Setting]:
    """Return the settings of a function or class by name: its keyword-only parameters that have a default.

    Raises `UserError` for an annotation that cannot be read; where there is none, the default's type stands for it.
    """
    function = getattr(target, "__init__") if inspect.isclass(target) else target  # noqa: B009 - of a class, not of ours
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of something that is not written in Python
        return {}
    parameters = [
        p
        for p in signature.parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is not inspect.Parameter.empty
    ]
    written = {p.name: p.annotation for p in parameters if p.annotation is not inspect.Parameter.empty}
    try:
        # Only of these: what else a signature names may be imported for type checkers alone.
        hints = get_type_hints(
            type("Settings", (), {"__annotations__": written}),
            getattr(function, "__globals__", {}),
            include_extras=True,
        )
    except Exception as error:  # annotations are any expressions
        raise UserError(
            f"the annotations of {getattr(target, '__qualname__', target)} cannot be read ({error})"
        ) from error
    meanings = _meanings(function)
    return {
        p.name: Setting(p.name, hints.get(p.name, type(p.default)), p.default, meanings.get(p.name, ""))
        for p in parameters
        if p.name not in _SHARED
    }


_SHARED = ("data",)
"""Parameters that a key of the schema fills for whatever has them: where a world's data lie."""


def _meanings(function: Callable[..., Any]) -> dict[str, str]:
    """Return the comment behind each parameter, where its line ends with one."""
    try:
        lines = iter(dedent(inspect.getsource(function)).splitlines(keepends=True))
        tokens = list(tokenize.generate_tokens(lambda: next(lines, "")))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):  # it was typed in, or is no Python function
        return {}
    found: dict[str, str] = {}
    for token in tokens:
        parameter = re.match(r"\s+(\w+)\s*[:=]", token.line)
        if token.type == tokenize.COMMENT and parameter:
            found.setdefault(parameter[1], token.string.lstrip("# "))
    return found


@contextmanager
def told_of(entry: Entry) -> Iterator[None]:
    """Say in a sentence, as a `UserError`, what a thing of a user's raises in the block, and where it did."""
    try:
        yield
    except (Exception, SystemExit) as error:  # anybody's function may raise anything
        if entry.ships or isinstance(error, UserError):
            raise
        ours = entry.file or getattr(inspect.getmodule(entry.target), "__file__", None)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == ours]
        where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""
        raise UserError(f"the {entry.called} failed ({where}{type(error).__name__}: {error})") from error


class View(Mapping[str, T]):
    """The things of a kind by name, each in the form that `form` gives an entry; unknown names raise `UserError`."""

    def __init__(self, kind: str, form: Callable[[Entry], T]) -> None:
        self.kind, self.form = kind, form

    def __getitem__(self, name: str) -> T:
        return self.form(find(self.kind, name))

    def __iter__(self) -> Iterator[str]:
        return iter(names(self.kind))

    def __len__(self) -> int:
        return len(names(self.kind))


def check_settings(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UserError` for the first given setting that its owner does not have."""
    known = list(known)
    for name in given:
        if name not in known:
            raise UserError(f"{owner} has no setting '{name}'{suggest(name, known)}")
