"""The base model of an adapter: find it again wherever it is now, and identify it by its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from envrl.errors import UserError
from envrl.models.checkpoints import BASE, holds_adapter, sha256
from envrl.models.find import is_hub_id, model_folder


@dataclass(frozen=True, slots=True)
class Base:
    """The base model of an adapter: its folder, a SHA-256 of its weight files, and its name.

    `beside` is the folder relative to the adapter's, for runs that are moved together with it; `name` and `revision`
    are the recipe's `model.path` and `model.revision`.
    """

    folder: str
    weights: str
    name: str = ""
    revision: str = ""
    beside: str = ""


def base_folder(folder: Path, name: str = "", revision: str = "") -> Path | None:
    """Return the folder of the base of the adapter saved in `folder`; None if that holds a whole model.

    It is looked up by the recipe (`name`, `revision`), at its old path, and at its old path relative to the adapter;
    its weights must have the same hash. Raises `UserError` if it is not found.
    """
    if not holds_adapter(folder):
        return None
    base, other = read_base(folder), ""
    for place in _places(base, folder, name, revision):
        if not (place / "config.json").is_file():
            continue
        if hash_of_weights(place) == base.weights:
            return place
        other = str(place)
    named = f"'{folder}' holds an adapter of the model in '{base.folder}'"
    how = "name its new place by --model.path"
    if other:
        raise UserError(f"{named}, whose weights have changed since; put that model back, or {how}")
    raise UserError(f"{named}, which is not there; put that model back, or {how}")


def check_base(folder: Path, name: str) -> None:
    """Raise `UserError` if `folder` holds no adapter, or `name` is not its base model."""
    if not holds_adapter(folder):
        raise UserError(
            f"'{folder}' holds a whole model, not an adapter: model.path says where an adapter's base lies now; leave "
            "it out"
        )
    base, place = read_base(folder), model_folder(name)
    if not (place / "config.json").is_file():
        raise UserError(f"model.path = '{name}' is not a model folder: it has no config.json")
    if hash_of_weights(place) != base.weights:
        raise UserError(
            f"model.path = '{name}' is not the model of the adapter in '{folder}': it has other weights than the one "
            f"that lay in '{base.folder}'"
        )


def _places(base: Base, folder: Path, name: str, revision: str) -> Iterator[Path]:
    """Yield the folders where an adapter's base may be; those not on this machine come last."""
    if name and not is_hub_id(name):
        with suppress(UserError):
            yield model_folder(name)
    yield Path(base.folder)
    if base.beside:
        yield folder.resolve() / base.beside
    for asked, at in ((name, revision), (base.name, base.revision)):
        if asked and is_hub_id(asked):
            yield model_folder(asked, at)
            return


def read_base(folder: Path) -> Base:
    """Return the base recorded in an adapter's folder; raise `UserError` if that is not readable."""
    try:
        return Base(**json.loads((folder / BASE).read_bytes()))
    except (ValueError, TypeError):
        raise UserError(f"'{folder / BASE}' is not readable: it names the model that the adapter belongs to") from None


def hash_of_weights(folder: Path) -> str:
    """Return a SHA-256 of the names and contents of a folder's weight files."""
    whole = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin") and file.is_file():
            whole.update(f"{file.name} {sha256(file)}\n".encode())
    return whole.hexdigest()
