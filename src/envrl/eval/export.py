"""Export the model of a run for use elsewhere: without trainer state, and with a LoRA adapter merged into its base."""

from __future__ import annotations

import shutil
from pathlib import Path

from envrl.errors import UserError
from envrl.eval.target import Target, find_target, with_base
from envrl.models.checkpoints import MANIFEST, files_below, holds_adapter
from envrl.progress import Reporter


def export_model(target: str | Path, folder: Path, base: str = "", reporter: Reporter | None = None) -> None:
    """Write the model of a run (its latest checkpoint) or of a checkpoint atomically into a new folder.

    Plain `from_pretrained` loads it. `base` is the current path of a LoRA run's base model. Raises `UserError` if there
    is no such model, or the folder cannot be created.
    """
    source, _ = with_base(find_target(target), [("model.path", base)] if base else [])
    if source.script:
        raise UserError(f"'{target}' is a script, not a model; name a run or a checkpoint")
    if folder.exists():
        raise UserError(f"'{folder}' is there already; name a folder that is not")
    if not folder.parent.is_dir():
        raise UserError(f"'{folder}' cannot be made: there is no folder {folder.parent}")
    from envrl.engine.checkpoint import save_folder

    reporter = reporter or Reporter()
    if holds_adapter(source.folder):
        save_folder(folder, lambda aside: _merge(source, aside, reporter))
    else:
        save_folder(folder, lambda aside: _copy(source.folder, aside, reporter))


def _merge(source: Target, target: Path, reporter: Reporter) -> None:
    from envrl.models.adapters import merge_adapter
    from envrl.models.load import load_policy, save_model

    with reporter.phase("loading the model"):
        model = load_policy(source.folder, source.config, "cpu")
    with reporter.phase("merging the adapter"):
        merge_adapter(model.network)
    with reporter.phase("writing the model"):
        save_model(model, target)


def _copy(source: Path, target: Path, reporter: Reporter) -> None:
    for name, file in reporter.over(list(files_below(source).items()), "export", "files"):
        if name != MANIFEST and not name.startswith("state."):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)
