"""Resolve a model's name: a folder, a name of `envrl models`, or an id of the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from envrl.errors import UserError, suggest
from envrl.models.catalogue import MODELS
from envrl.models.checkpoints import holds_adapter
from envrl.models.hub import HUB_ID, config_file, hub_folder, missing_parts
from envrl.places import default_folder

RECORD = "envrl-model.json"
"""The file in a model's folder that records its origin and processing."""


def named_folder(name: str) -> Path:
    """Return the folder of `envrl models get NAME`: ${XDG_DATA_HOME:-~/.local/share}/envrl/models/NAME."""
    return default_folder("models") / name


def named_models() -> list[str]:
    """Return the names of all models that are available or installed, sorted."""
    home = default_folder("models")
    here = [path.name for path in home.iterdir() if (path / "config.json").is_file()] if home.is_dir() else []
    return sorted({*MODELS, *here})


def folder_here(path: str) -> Path | None:
    """Return the local folder of a name: the folder of that path, else that of `envrl models`, or None."""
    local = Path(os.path.expanduser(path))
    if local.exists():
        return local
    named = named_folder(path)
    return named if "/" not in path and (named / "config.json").is_file() else None


def is_hub_id(path: str) -> bool:
    """Return whether `model.path` is neither a local folder nor an installed name, and could be an id of the hub."""
    return not folder_here(path) and HUB_ID.fullmatch(path) is not None


def pinned_revision(path: str, revision: str = "") -> str:
    """Return the current revision of a named model: a commit of the hub, or the revision in its record.

    Empty for a folder without a record. Nothing large is downloaded. Raises `UserError` if there is no such model, or
    the installed one has another revision than the one asked for.
    """
    folder = folder_here(path)
    if folder is None:
        _check_name(path)
        return config_file(path, revision).parent.name
    current = str(read_record(folder).get("revision", ""))
    if revision and current != revision:
        what = f"is '{current}'" if current else "has no record that says its revision"
        raise UserError(
            f"the model '{path}' here {what}, and model.revision = '{revision}' asks for another: leave model.revision "
            "out, or get that one"
        )
    return current


def model_folder(path: str, revision: str = "") -> Path:
    """Return the folder of a named model, downloaded first if it is an id of the hub.

    Raises `UserError` if there is no such model, `RunError` if a download fails.
    """
    folder = folder_here(path)
    if folder is not None:
        pinned_revision(path, revision)
        return folder
    _check_name(path)
    return hub_folder(path, revision)


def config_folder(path: str, revision: str = "") -> Path:
    """Return a folder with the model's config.json, the only file downloaded from the hub; may raise `UserError`."""
    folder = folder_here(path)
    if folder is not None:
        return folder
    _check_name(path)
    return config_file(path, revision).parent


def check_folder(folder: Path, name: str = "") -> None:
    """Raise `UserError` if a folder does not hold a trainable model, with what is missing and what to do.

    Only the configuration is read, not the weights; the folder of an adapter that envrl saved passes.
    """
    if holds_adapter(folder):
        return
    named = f"'{name or folder}' is not a model folder"
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise UserError(f"{named} but an adapter of another program: merge it into its model with 'peft' first")
    missing = missing_parts(folder)
    if missing and any(folder.glob("*.gguf")):
        raise UserError(f"{named}: it has a GGUF file and no {missing[0]}; take the model's original weights")
    if missing:
        raise UserError(f"{named}: it has no {missing[0]}; name a folder that transformers loads")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except ValueError:
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{named}: its config.json is no model's configuration, which names a model_type")
    if "quantization_config" in config:
        kind = (config["quantization_config"] or {}).get("quant_method", "somehow")
        raise UserError(
            f"the weights in '{name or folder}' are quantised ({kind}), and cannot be trained: take the model's "
            "original weights"
        )
    if config.get("is_encoder_decoder"):
        raise UserError(
            f"the model in '{name or folder}' is an encoder with a decoder ({config['model_type']}), not a causal "
            "language model: take one of Qwen, Llama, Gemma, Phi-3 or LFM2"
        )


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record in a model's folder, empty if there is none; raise `UserError` if it is not readable."""
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"'{folder / RECORD}' is not readable: get the model anew, or remove that file")
    return record


def _check_name(path: str) -> None:
    """Raise `UserError` for a name that is not installed and cannot be an id of the hub."""
    if path in MODELS:
        raise UserError(f"the model '{path}' is not here yet: 'envrl models get {path}' gets it")
    if not HUB_ID.fullmatch(path):
        near = suggest(path, named_models())
        raise UserError(
            f"model.path = '{path}' is neither a folder here, nor a name of 'envrl models list', nor an id of the hub "
            f"such as Qwen/Qwen2.5-1.5B-Instruct{near if 'did you mean' in near else ''}"
        )
