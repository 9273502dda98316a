"""`envrl models list|get|check [NAME]`: models by name: where they lie, getting them, their hashes."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from envrl.cli.arguments import Parser
from envrl.data.check import Verdict
from envrl.errors import Interrupted, UserError, suggest
from envrl.models.catalogue import MODELS
from envrl.models.checkpoints import MANIFEST, files_below, sha256
from envrl.models.find import is_hub_id, model_folder, named_folder, named_models, pinned_revision, read_record
from envrl.models.hub import cached_folder, missing_parts
from envrl.progress import Reporter

_ACTIONS = ("list", "get", "check")


def run(arguments: Sequence[str]) -> int:
    """List the models, get one, or check one; status 1 where what lies there is not what it should be."""
    parser = Parser(
        "models",
        "Models by name, and any of the hub: where they lie, getting them, checking them.",
        usage="list|get|check [NAME] [--from hub|index|FOLDER] [--revision R]",
    )
    parser.add_argument("action", metavar="list|get|check", help="list them, get one, or check the one that is here")
    parser.add_argument(
        "name", metavar="NAME", nargs="?", default="", help="such as smollm2-135m, or an id of the hub: Qwen/Qwen3-0.6B"
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="hub|index|FOLDER",
        default="",
        help="get: from there alone; a folder with the wheel",
    )
    parser.add_argument("--revision", metavar="R", default="", help="of a model of the hub: a commit, tag or branch")
    values = parser.parse(arguments)
    if values.action not in _ACTIONS:
        raise UserError(f"unknown action '{values.action}'{suggest(values.action, _ACTIONS)}")
    if values.action == "list":
        print("\n\n".join(_described(name) for name in ([values.name] if values.name else named_models())))
        return 0
    if not values.name:
        known = " or ".join(named_models())
        raise UserError(f"'envrl models {values.action}' needs the name of a model: {known}, or an id of the hub")
    return _get(values) if values.action == "get" else _check(values)


def _get(values: argparse.Namespace) -> int:
    name = values.name
    try:
        if name in MODELS:
            from envrl.cli.model_sources import get_named

            if values.revision:
                raise UserError(f"--revision is for an id of the hub; '{name}' has one of its own")
            folder = get_named(MODELS[name], values.source, Reporter())
        else:
            if values.source not in ("", "hub"):
                raise UserError(f"--from is for {' or '.join(MODELS)}; '{name}' comes from the hub")
            revision = pinned_revision(name, values.revision)
            folder = model_folder(name, revision)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command begins again, and the hub's goes on from there") from None
    print(f"{name} lies in {folder}")
    print("\n".join(_about(folder)))
    print(f"recipes find it with: model.path = '{name}'")
    return 0


def _check(values: argparse.Namespace) -> int:
    if values.source:
        raise UserError("--from belongs to 'envrl models get'")
    folder = _found(values.name, values.revision)
    print("\n".join([f"{values.name} in {folder}", *_about(folder)]))
    verdicts = list(_verdicts(folder))
    told = {verdict.name for verdict in verdicts}
    verdicts += [Verdict(name, False, "is missing") for name in missing_parts(folder) if name not in told]
    print("\n".join(map(str, verdicts)))
    return 1 if any(verdict.good is False for verdict in verdicts) else 0


def _found(name: str, revision: str = "") -> Path:
    """Return where a model lies on this machine; raises `UserError` where it does not, and asks nobody else."""
    folder = cached_folder(name, revision) if is_hub_id(name) else None
    if folder is None and is_hub_id(name):
        raise UserError(f"'{name}' is not in the hub's cache; 'envrl models get {name}' gets it")
    return folder or model_folder(name)


def _verdicts(folder: Path) -> Iterator[Verdict]:
    """Yield for each file whether it is as the manifest says, else as the hub's cache names it: by its hash."""
    present, expected = files_below(folder), _manifest(folder)
    if expected is None:
        yield Verdict(MANIFEST, False, "is not readable")
        return
    for name, path in present.items():
        if name == MANIFEST:
            continue
        digest, blob = sha256(path), path.resolve().name if path.is_symlink() else ""
        found, known, whose = digest, expected.get(name, ""), "it came with"
        if not known and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob):  # the hub's cache: git's hash, or the file's
            found, known, whose = (digest if len(blob) == 64 else _git_hash(path)), blob, "the hub's file has"
        same = found == known
        said = f"{path.stat().st_size:,} bytes, SHA-256 {digest[:16]}…"
        told = "as it came" if same else f"changed: {whose} {known[:16]}…" if known else "nothing to compare it with"
        yield Verdict(name, same if known else None, f"{said}: {told}")
    for name in sorted(expected.keys() - present.keys()):
        yield Verdict(name, False, "is missing")


def _manifest(folder: Path) -> dict[str, str] | None:
    """Return the SHA-256 of each file as it came, none where there is no manifest; None where that is unreadable."""
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return {str(name): str(entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _described(name: str) -> str:
    if name not in named_models() and not is_hub_id(name):
        raise UserError(f"unknown model '{name}'{suggest(name, named_models())}")
    known = MODELS.get(name)
    lines = [f"{name}: {known.title}" if known else name]
    try:
        folder = _found(name)
    except UserError as error:
        where = f"not here; 'envrl models get {name}' would put it in {named_folder(name)}" if known else str(error)
        lines.append(f"  folder    {where}")
    else:
        lines += [f"  folder    {folder}", *_about(folder)]
    if known:
        wheel = known.wheel
        lines += [f"  licence   {known.licence}", f"  hub       {known.hub}"]
        lines.append(f"  else      {wheel.package} {wheel.version} of the package index, {wheel.bytes:,} bytes")
        lines += [f"            SHA-256 {wheel.sha256}", f"            de-quantised from {wheel.kind}"]
    return "\n".join(lines)


def _about(folder: Path) -> list[str]:
    """Return what a model's record says: from where it came, and what was done to it."""
    record = read_record(folder)
    if not record:
        return [] if is_hub_snapshot(folder) else ["  record    none: it was not put there by 'envrl models get'"]
    note = f", {record['note']}" if record.get("note") else ""
    return [f"  from      {record.get('source', 'unknown')}{note}", f"  revision  {record.get('revision', 'unknown')}"]


def is_hub_snapshot(folder: Path) -> bool:
    """Return whether a folder is one of the hub's cache, whose name is its commit."""
    return folder.parent.name == "snapshots"
