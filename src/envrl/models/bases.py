"""The model that an adapter was trained on: found again wherever it lies now, and told by its hash."""

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
    """The model that an adapter was trained on: its folder, a SHA-256 over its weight files, and its name.

    `beside` is the folder as seen from the adapter's, for runs that are moved together with it; `name` and `revision`
    are the recipe's `model.path` and `model.revision`.
    """

    folder: str
    weights: str
    name: str = ""
    revision: str = ""
    beside: str = ""


def base_folder(folder: Path, name: str = "", revision: str = "") -> Path | None:
    """Return the folder of the base of an adapter that was saved in `folder`; None where that holds a whole model.

    It is looked for where the recipe says (`name`, `revision`), where it lay, and at the same place as seen from the
    adapter; only one with the same weights is taken. Raises `UserError` where there is none.
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
    """Raise `UserError` where `folder` holds no adapter, or `name` is not the model that it was trained on."""
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
    """Yield where an adapter's base may lie; what is not on this machine is asked for last."""
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
    """Return what an adapter's folder says of its base; raises `UserError` where that is not readable."""
    try:
        return Base(**json.loads((folder / BASE).read_bytes()))
    except (ValueError, TypeError):
        raise UserError(f"'{folder / BASE}' is not readable: it names the model that the adapter belongs to") from None


def hash_of_weights(folder: Path) -> str:
    """Return a SHA-256 over the names and contents of a folder's weight files."""
    whole = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin") and file.is_file():
            whole.update(f"{file.name} {sha256(file)}\n".encode())
    return whole.hexdigest()
