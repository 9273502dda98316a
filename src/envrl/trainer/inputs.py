"""What can be refused of a run before torch is loaded, which takes seconds: names, splits, data, directories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from envrl.config.schema import Config
from envrl.envs.answers import listed_tasks, opened, what_happened
from envrl.envs.protocol import TextEnv
from envrl.errors import RunError, UserError
from envrl.files import check_new_run
from envrl.models.find import check_folder, is_hub_id, model_folder, pinned_revision
from envrl.objective.advantage import ESTIMATORS
from envrl.rendering.prompts import find_format
from envrl.rollout.scripts import make_script


def check_directory(run: Path, resume: bool) -> None:
    """Raise `UserError` where there is no run to resume, or something in the place of a new one."""
    if not resume:
        check_new_run(run)
    elif not (run / "config.toml").is_file():
        raise UserError(f"there is no run in '{run}' to resume; start it without --resume")


def check_names(config: Config, make_env: Callable[[], TextEnv]) -> None:
    """Raise `UserError` for an estimator, a format, a world or splits that are not there, or without tasks."""
    # Of two short episodes: what its settings, or the function itself, cannot do is said before anything is played.
    trial = ([[0.0, 1.0], [0.0]], [["a", "b"], ["a"]])
    ESTIMATORS[config.objective.estimator](*trial, **config.settings("estimator"))
    if config.rollout.is_chat:
        find_format(config.rollout.format, **config.settings("format"))
    with opened(make_env()) as env:
        for split in (config.env.split, *config.eval.split):
            if not listed_tasks(env, split, config.env.name):
                raise UserError(f"the split '{split}' of the world '{config.env.name}' has no tasks")


def pinned_model(config: Config) -> Config:
    """Return the configuration with the revision of the model that it names, which the hub is asked for.

    Raises `UserError` where there is no such model, or its folder lacks files.
    """
    model = config.model
    if not model.path or config.warm_start.path:
        return config
    if not is_hub_id(model.path):
        check_folder(model_folder(model.path), model.path)
    return replace(config, model=replace(model, revision=pinned_revision(model.path, model.revision)))


def check_demonstrator(config: Config, make_env: Callable[[], TextEnv]) -> None:
    """Raise `UserError` where a warm start has no tasks to imitate, or nobody who plays them."""
    demonstrator, held_out = config.warm_start.demonstrator, config.warm_start.held_out
    with opened(make_env()) as env:
        tasks = listed_tasks(env, config.env.split, config.env.name)
        if held_out >= len(tasks):
            raise UserError(
                f"warm_start.held_out = {held_out} leaves nothing of the {len(tasks)} tasks of split "
                f"'{config.env.split}'"
            )
        try:
            make_script(demonstrator, env, tasks[0], config.seed)
        except (UserError, RunError):
            raise
        except Exception as error:  # a world may raise anything
            raise UserError(
                f"the {demonstrator} of the world '{config.env.name}' cannot be had: {what_happened(error)}"
            ) from error
