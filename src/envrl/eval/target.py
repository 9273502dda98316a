"""The agent that an evaluation names: a script, a run, a checkpoint, a folder, or a model by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from envrl.config.load import load_run, override
from envrl.config.schema import Config
from envrl.errors import UserError, suggest
from envrl.models.bases import check_base
from envrl.models.checkpoints import MANIFEST, holds_adapter, latest_checkpoint, verify_checkpoint
from envrl.models.find import is_hub_id, model_folder, named_models, pinned_revision
from envrl.rollout.scripts import SCRIPTS


@dataclass(frozen=True, slots=True)
class Target:
    """The agent to evaluate: a script's name or a model's folder, with its configuration and its run if it has one."""

    script: str
    folder: Path
    config: Config
    run: Path | None = None
    name: str = ""
    """The given name of a model that does not belong to a run."""


def find_target(target: str | Path, revision: str = "") -> Target:
    """Resolve a target, and verify its files if it has a manifest; raise `UserError` if there is no such target.

    `revision` is that of a model by name or of the hub; empty: the present one.
    """
    if str(target) in SCRIPTS:
        return Target(str(target), Path(), Config())
    folder = Path(target)
    if (folder / "config.toml").is_file():
        latest = latest_checkpoint(folder / "checkpoints")
        if latest is None:
            raise UserError(f"the run '{folder}' has no checkpoint yet; go on with it by --resume")
        return Target("", latest, load_run(folder), folder)
    if not folder.exists():
        return _named_model(str(target), revision)
    if not (folder / "config.json").is_file() and not holds_adapter(folder):
        raise UserError(
            f"the folder '{target}' is neither a run (config.toml), nor a model that transformers loads (config.json)"
        )
    place = folder.resolve()
    runs = [run for run in (place.parent, place.parent.parent) if (run / "config.toml").is_file()]
    ours = runs and (place.name in ("latest", "warm_start") or place.name.startswith("step-"))
    if ours or (folder / MANIFEST).is_file():  # a run writes a manifest, so its model is refused without one
        verify_checkpoint(folder)
    if runs:
        return Target("", folder, load_run(runs[0]), runs[0])
    return Target("", folder, Config())


def _named_model(name: str, revision: str) -> Target:
    """Return the model of a name in `envrl models` or an id of the hub."""
    if not is_hub_id(name) and name not in named_models():
        hint = suggest(name, [*SCRIPTS, *named_models()])
        raise UserError(
            f"'{name}' is neither a run (config.toml), nor a folder that transformers loads (config.json), nor a model "
            f"of 'envrl models list' or the hub, nor random, walkthrough or expert"
            f"{hint if 'did you mean' in hint else ''}"
        )
    revision = pinned_revision(name, revision)
    model = replace(Config().model, path=name, revision=revision)
    return Target("", model_folder(name, revision), replace(Config(), model=model), name=name)


def with_base(target: Target, settings: Sequence[tuple[str, str]]) -> tuple[Target, list[tuple[str, str]]]:
    """Return the target with the `model.path` of its adapter's base taken from the settings, and the other settings.

    Raises `UserError` if `model.path` is given and is not that base.
    """
    others = [(key, value) for key, value in settings if key != "model.path"]
    for key, value in settings:
        if key == "model.path":
            check_base(target.folder, value)
            target = replace(target, config=override(target.config, [(key, value), ("model.revision", "")]))
    return target, others
