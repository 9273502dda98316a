"""The registry of everything that a recipe chooses by name. The settings of a thing are read from its signature.

A thing is built in, comes from an installed package (entry points `envrl.<kind>s`) or from a user's file
(`load_plugin`), or is registered by the program that imports envrl. A thing is imported only when it is asked for.
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
    """A kind of thing: its noun, the recipe key that chooses one, and the built-in ones as "module:name".

    The settings of a thing are in a table of its name under one of `tables`, such as `[objective.gigpo]`. If `key` is
    empty, a recipe may use any number of them.
    """

    noun: str
    key: str
    tables: tuple[str, ...]
    group: str
    built_in: Mapping[str, str]
    reserved: tuple[str, ...] = ()
    """Names that nothing of this kind may have."""

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
            "openenv": "envrl.envs.adapters.openenv_world:openenv",
            "scienceworld": "envrl.envs.adapters.scienceworld_world:scienceworld",
            "sokoban": "envrl.envs.adapters.sokoban:sokoban",
            "textworld": "envrl.envs.adapters.textworld_world:textworld",
            "verifiers": "envrl.envs.adapters.verifiers_world:verifiers",
            "webshop": "envrl.envs.webshop.factory:webshop",
        },
    ),
    "estimator": Kind(
        "advantage estimator",
        "objective.estimator",
        ("objective",),
        "envrl.estimators",
        {
            **{
                name: f"envrl.objective.estimators.{name}:{name}"
                for name in (
                    "grpo",
                    "rloo",
                    "gigpo",
                    "hgpo",
                    "graphgpo",
                    "maxrl",
                    "stratified",
                    "gae",
                    "poad",
                    "spa",
                    "hiper",
                )
            },
            "reinforce++": "envrl.objective.estimators.reinforce:reinforce_plus_plus",
            "reinforce++-baseline": "envrl.objective.estimators.reinforce:reinforce_plus_plus_baseline",
        },
    ),
    "loss": Kind(
        "policy loss",
        "objective.loss",
        ("objective",),
        "envrl.losses",
        {name: f"envrl.objective.losses.{name}:{name}" for name in ("ppo", "gspo", "cispo", "clip_cov")},
    ),
    "auxiliary": Kind(
        "auxiliary objective",
        "",
        ("auxiliary", "warm_start.auxiliary"),
        "envrl.auxiliaries",
        {
            name: f"envrl.objective.auxiliary.{name}:{name}"
            for name in ("state", "inverse", "echo", "paw", "uishift", "aawm")
        },
        reserved=("entropy", "imitation", "kl", "plan", "policy", "progress", "replay", "retry", "value"),
    ),
    "regularizer": Kind(
        "regularizer",
        "",
        ("regularizer",),
        "envrl.regularizers",
        {"epo": "envrl.objective.regularizers.epo:Epo"},
        reserved=("entropy", "imitation", "kl", "plan", "policy", "progress", "replay", "retry", "value"),
    ),
    "teacher": Kind(
        "teacher",
        "",
        ("teacher",),
        "envrl.teachers",
        {name: f"envrl.objective.teachers.{name}:{name}" for name in ("distill", "sdpo")},
        reserved=("entropy", "imitation", "kl", "plan", "policy", "progress", "replay", "retry", "value"),
    ),
    "retry": Kind(
        "retry",
        "retry.name",
        ("retry",),
        "envrl.retries",
        {name: f"envrl.objective.retries.{name}:{name}" for name in ("none", "critique", "hint")},
    ),
    "memory": Kind(
        "memory",
        "memory.name",
        ("memory",),
        "envrl.memories",
        {"none": "envrl.memories.none:NoMemory", "memrl": "envrl.memories.memrl:MemRL"},
    ),
    "reward": Kind(
        "reward",
        "",
        ("reward",),
        "envrl.rewards",
        {name: f"envrl.objective.rewards.{name}:{name}" for name in ("inverse", "overlong")},
    ),
    "format": Kind(
        "prompt format",
        "rollout.format",
        ("rollout",),
        "envrl.formats",
        {
            name: f"envrl.rendering.prompts:{name}_format"
            for name in ("marks", "tags", "action", "react", "json", "plan", "subgoal")
        },
    ),
    "curriculum": Kind(
        "curriculum",
        "curriculum.name",
        ("curriculum",),
        "envrl.curricula",
        {
            name: f"envrl.curricula.{name}:{name.capitalize()}"
            for name in ("shuffle", "scaling", "solvable", "progress", "failures", "restarts", "dynamic")
        },
    ),
    "engine": Kind(
        "engine",
        "train.engine",
        ("train",),
        "envrl.engines",
        {name: f"envrl.engine.protocol:{name}" for name in ("local", "sharded", "frozen")},
    ),
    "sampler": Kind(
        "sampler",
        "rollout.sampler",
        ("rollout",),
        "envrl.samplers",
        {
            "own": "envrl.rollout.own:own",
            "endpoint": "envrl.eval.endpoint_sampler:EndpointSampler",
            "server": "envrl.serving.sampler:server",
            "vllm": "envrl.serving.sampler:vllm",
            "ray": "envrl.serving.sampler:ray",
        },
    ),
    "warm_start": Kind(
        "warm-start method",
        "warm_start.method",
        ("warm_start",),
        "envrl.warm_starts",
        {
            "imitation": "envrl.imitation.methods.imitation:Imitation",
            "dagger": "envrl.imitation.methods.dagger:Dagger",
            "rejection": "envrl.imitation.methods.rejection:Rejection",
            "early_experience": "envrl.imitation.methods.early_experience:EarlyExperience",
            "self_reflection": "envrl.imitation.methods.self_reflection:SelfReflection",
        },
        reserved=("auxiliary",),
    ),
    "replay": Kind(
        "replay",
        "replay.name",
        ("replay",),
        "envrl.replays",
        {
            "none": "envrl.replays.none:NoReplay",
            "arpo": "envrl.replays.arpo:Arpo",
            "spear": "envrl.replays.spear:Spear",
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A keyword-only parameter of a thing, which a recipe can set. `meaning` is the comment on its line."""

    name: str
    annotation: Any
    default: Any
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered thing: `traits` are the decorator's extra arguments, `file` is the plug-in that registered it."""

    kind: str
    name: str
    target: Callable[..., Any]
    traits: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""

    @property
    def settings(self) -> Mapping[str, Setting]:
        """Its settings by name, read from its signature."""
        return settings_of(self.target)

    @property
    def called(self) -> str:
        return f"{KINDS[self.kind].noun} '{self.name}'"

    @property
    def ships(self) -> bool:
        """True if it is built in."""
        return self.name in KINDS[self.kind].built_in

    @property
    def known_by_name(self) -> bool:
        """True if another process can find it by its name alone."""
        return self.ships or self.name in _points(self.kind)


TAKEN: set[str] = set()
"""Dotted keys that every recipe has: no table can have such a name."""
_ENTRIES: dict[tuple[str, str], Entry] = {}
_LOADING: list[tuple[str, list[Entry]]] = []
"""Plug-in files that are being imported, innermost last, each with the entries it has registered so far."""


def register(kind: str, name: str, **traits: Any) -> Callable[[T], T]:
    """Register a function or class as `name` of a kind; its keyword-only parameters are its settings.

    Raises `UserError` for an unknown kind, a name that is not a word, and a name that is taken.
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
    if entry.ships:  # looking up installed packages takes time, and built-in names do not collide
        return
    for kind, other in KINDS.items():
        if kind == entry.kind or entry.name not in names(kind):
            continue
        if {entry.kind, kind} <= {"auxiliary", "regularizer", "teacher"}:
            raise UserError(
                f"there is already {other.one} '{entry.name}', and loss/{entry.name} is its figure in the log: "
                "register yours under another name"
            )
        if other.tables == KINDS[entry.kind].tables:
            raise UserError(
                f"there is already {other.one} '{entry.name}', and [{other.tables[0]}.{entry.name}] is the table of "
                "its settings: register yours under another name"
            )


def names(kind: str) -> list[str]:
    """Return the names of a kind, sorted."""
    return sorted({*KINDS[kind].built_in, *(name for of, name in _ENTRIES if of == kind), *_points(kind)})


def in_order(kind: str, chosen: Iterable[str]) -> list[str]:
    """Return the chosen names in a fixed order: the built-in ones first, then the others by name."""
    ours = list(KINDS[kind].built_in)
    return sorted(chosen, key=lambda name: (ours.index(name) if name in ours else len(ours), name))


def find(kind: str, name: str) -> Entry:
    """Return the thing of this name, and import it if necessary.

    Raises `UserError` if there is none, `CannotImport` if it belongs to a package that cannot be imported.
    """
    if (kind, name) not in _ENTRIES:
        if place := KINDS[kind].built_in.get(name):
            module, _, attribute = place.partition(":")
            target = getattr(importlib.import_module(module), attribute)
            _ENTRIES.setdefault((kind, name), Entry(kind, name, target))  # unless the import registered it
        else:
            if name not in _points(kind):
                _points.cache_clear()  # it may have been installed after the first look
            if name not in _points(kind):
                raise UserError(f"unknown {KINDS[kind].noun} '{name}'{suggest(name, names(kind))}")
            _load_point(kind, _points(kind)[name])
    return _ENTRIES[kind, name]


class CannotImport(UserError):
    """The import of a thing from an installed package failed."""


@cache
def _points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=KINDS[kind].group)}


def _load_point(kind: str, point: EntryPoint) -> None:
    try:
        target = point.load()
    except Exception as error:  # the import of a package may raise anything
        raise CannotImport(
            f"the {KINDS[kind].noun} '{point.name}' is '{point.value}', which cannot be imported "
            f"({type(error).__name__}: {error})"
        ) from error
    _ENTRIES.setdefault((kind, point.name), Entry(kind, point.name, target))  # unless the import registered it


def load_plugin(file: Path) -> str:
    """Import a user's file, once, and keep what it registers; return its SHA-256.

    Raises `UserError` if the file is missing, does not parse, raises, or registers nothing; then nothing is kept.
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
"""The entries that each plug-in file registered, by the file's SHA-256."""


def _import(file: Path, data: bytes, digest: str) -> list[Entry]:
    """Run exactly the bytes that were hashed, not cached bytecode; return the entries that they register."""
    name = f"envrl_plugin_{digest[:16]}"
    if file.suffix != ".py":
        raise UserError(f"the plug-in '{file}' is no Python file: its name ends with .py")
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses and pickle look up the module of a class
    with _undone(name) as entries:
        _LOADING.append((str(file), entries))
        try:
            exec(compile(data, str(file), "exec"), module.__dict__)
        except UserError as error:
            raise UserError(f"the plug-in '{file}': {error}") from error
        except SyntaxError as error:
            where = f"line {error.lineno}: " if error.lineno else ""
            raise UserError(f"the plug-in '{file}' is not Python ({where}{error.msg})") from error
        except (Exception, SystemExit) as error:  # a user's file may raise anything
            raise UserError(f"the plug-in '{file}' cannot be imported ({type(error).__name__}: {error})") from error
        finally:
            _LOADING.pop()
        if not entries:
            how = "envrl.register(kind, name) above a function does"
            raise UserError(f"the plug-in '{file}' registers nothing: {how}")
    return entries


@contextmanager
def _undone(module: str) -> Iterator[list[Entry]]:
    """Yield a list for the module's entries; if the block raises, remove the module and these entries."""
    entries: list[Entry] = []
    try:
        yield entries
    except BaseException:
        sys.modules.pop(module, None)
        for entry in entries:
            _ENTRIES.pop((entry.kind, entry.name), None)
        raise


@cache
def settings_of(target: Callable[..., Any]) -> Mapping[str, Setting]:
    """Return the settings of a function or class by name: its keyword-only parameters with a default.

    A parameter without an annotation has the type of its default. Raises `UserError` for an unreadable annotation.
    """
    function = getattr(target, "__init__") if inspect.isclass(target) else target  # noqa: B009 - of any class
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # it is not written in Python
        return {}
    parameters = [
        p
        for p in signature.parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is not inspect.Parameter.empty
    ]
    annotations = {p.name: p.annotation for p in parameters if p.annotation is not inspect.Parameter.empty}
    try:
        # Only these annotations: the others may name imports that only type checkers see.
        hints = get_type_hints(
            type("Settings", (), {"__annotations__": annotations}),
            getattr(function, "__globals__", {}),
            include_extras=True,
        )
    except Exception as error:  # an annotation may be any expression
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
"""Parameters that a key of the schema fills, so they are not settings: `data` is the folder of a world's data."""


def _meanings(function: Callable[..., Any]) -> dict[str, str]:
    """Return the comment at the end of each parameter's line, by parameter name."""
    try:
        lines = iter(dedent(inspect.getsource(function)).splitlines(keepends=True))
        tokens = list(tokenize.generate_tokens(lambda: next(lines, "")))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):  # not from a file, or not Python
        return {}
    comments: dict[str, str] = {}
    for token in tokens:
        parameter = re.match(r"\s+(\w+)\s*[:=]", token.line)
        if token.type == tokenize.COMMENT and parameter:
            comments.setdefault(parameter[1], token.string.lstrip("# "))
    return comments


@contextmanager
def blame(entry: Entry) -> Iterator[None]:
    """Turn an exception that a user's thing raises in the block into a `UserError` that says what failed, and where."""
    try:
        yield
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        if entry.ships or isinstance(error, UserError):
            raise
        ours = entry.file or getattr(inspect.getmodule(entry.target), "__file__", None)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == ours]
        where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""
        raise UserError(f"the {entry.called} failed ({where}{type(error).__name__}: {error})") from error


class View(Mapping[str, T]):
    """A mapping from the names of a kind to `form(entry)`; unknown names raise `UserError`."""

    def __init__(self, kind: str, form: Callable[[Entry], T]) -> None:
        self.kind, self.form = kind, form

    def __getitem__(self, name: str) -> T:
        return self.form(find(self.kind, name))

    def __iter__(self) -> Iterator[str]:
        return iter(names(self.kind))

    def __len__(self) -> int:
        return len(names(self.kind))


def check_settings(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UserError` for the first given setting that is not among the owner's known ones."""
    known = list(known)
    for name in given:
        if name not in known:
            raise UserError(f"{owner} has no setting '{name}'{suggest(name, known)}")
