"""Checks of a run that need no torch, whose import takes seconds: names, splits, data, directories."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from envrl.config.schema import Config
from envrl.envs.answers import listed_tasks, opened, what_happened
from envrl.envs.protocol import TextEnv
from envrl.errors import RunError, UserError
from envrl.files import check_new_run
from envrl.imitation.method import method_of
from envrl.models.find import check_folder, is_hub_id, model_folder, pinned_revision
from envrl.objective.advantage import ESTIMATORS
from envrl.older import is_older
from envrl.registry import find
from envrl.rendering.prompts import find_format
from envrl.rollout.scripts import make_script
from envrl.trainer.replaying import Replaying
from envrl.trainer.tasks import Tasks


def check_directory(run: Path, resume: bool) -> None:
    """Raise `UserError` if a new run's directory is taken, or no run, or an older version's, is there to resume."""
    if not resume:
        check_new_run(run)
        return
    file = run / "config.toml"
    if not file.is_file():
        raise UserError(f"there is no run in '{run}' to resume; start it without --resume")
    _refuse_older(file)


def _refuse_older(file: Path) -> None:
    """Raise `UserError` for a run of an older version, whose configuration lacks settings."""
    try:
        older = is_older(tomllib.loads(file.read_text(encoding="utf-8")))
    except ValueError:  # `load_recipe` has the better error message
        return
    if older:
        raise UserError(
            f"'{file.parent}' was made by an older version of envrl and cannot be resumed by this one; it can still be "
            "evaluated, reported, compared and exported"
        )


def check_names(config: Config, make_env: Callable[[], TextEnv]) -> None:
    """Raise `UserError` for an unknown name, a split without tasks, and a curriculum or replay that fails at once."""
    # Try the estimator on two short episodes, so that bad settings or a broken function fail before the first rollout.
    trial = ([[0.0, 1.0], [0.0]], [["a", "b"], ["a"]])
    estimator, values = ESTIMATORS[config.objective.estimator], [[0.5, 0.5], [0.5]]
    heads = dict.fromkeys(estimator.more_heads, values)
    estimator(*trial, values=values, heads=heads, **config.settings("estimator"))
    if clash := heads.keys() & {each.name for each in config.auxiliaries()}:
        raise UserError(f"the {estimator.entry.called} and an auxiliary objective both name a loss '{min(clash)}'")
    for teacher in config.teachers():
        if teacher.model:
            check_folder(model_folder(teacher.model), teacher.model)
    if config.rollout.is_chat:
        find_format(config.rollout.format, **config.settings("format"))
    method_of(config)
    with opened(make_env()) as env:
        if not config.warm_start.path:
            find("warm_start", config.warm_start.method).traits.get("check", lambda *_: None)(env, config.env.name)
        for split in (config.env.split, *config.eval.split):
            if not listed_tasks(env, split, config.env.name):
                raise UserError(f"the split '{split}' of the world '{config.env.name}' has no tasks")
        curriculum = Tasks(listed_tasks(env, config.env.split, config.env.name), config)
        curriculum.next(1, Counter())
        curriculum.state()
    Replaying(config).state()


def pinned_model(config: Config) -> Config:
    """Return the configuration with the revision of its model, which is looked up on the hub.

    Raises `UserError` if there is no such model, or its folder lacks files.
    """
    model = config.model
    if not model.path or config.warm_start.path:
        return config
    if not is_hub_id(model.path):
        check_folder(model_folder(model.path), model.path)
    return replace(config, model=replace(model, revision=pinned_revision(model.path, model.revision)))


def check_demonstrator(config: Config, make_env: Callable[[], TextEnv]) -> None:
    """Raise `UserError` if a warm start has no tasks left to imitate, or the world lacks the demonstrator."""
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
