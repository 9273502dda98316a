"""Check everything before a run starts, so that bad input is refused before anything is written."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from envrl import ranks
from envrl.batches.auxiliary import try_out
from envrl.batches.retried import second_attempts
from envrl.batches.rewards import rewards_of
from envrl.batches.teaching import lessons_of
from envrl.build import form_of, renderer_of
from envrl.config.idle import idle_settings
from envrl.config.load import config_differences, dump_config, load_recipe, load_run
from envrl.config.schema import Config
from envrl.engine.checkpoint import verify_checkpoint
from envrl.engine.taught_part import load_teachers
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.protocol import TextEnv
from envrl.envs.ray_hosts import RayHosts
from envrl.errors import UserError
from envrl.eval.context_check import check_room_of_run
from envrl.eval.data import data_file, warn_of_other_data
from envrl.files import create_run, lock_run, write_text
from envrl.imitation.shared_start import learned_in_warm_start
from envrl.imitation.warm_start import FOLDER, PARTIAL
from envrl.memories.remembering import Remembering
from envrl.models.adapters import check_peft
from envrl.models.bases import check_base
from envrl.models.find import model_folder
from envrl.models.load import LanguageModel, find_device, load_policy
from envrl.models.out_of_memory import is_out_of_memory, release_memory
from envrl.models.runtime import in_place_of_auto, prepare_torch, usable_threads, with_precision
from envrl.models.tokenizer import MARKS
from envrl.objective.policy import TOKEN_LOSSES
from envrl.objective.regularizers.tokens import PolicyTokens
from envrl.registry import find
from envrl.rollout.scripts import attempt_script, random_script
from envrl.trainer.inputs import check_demonstrator, check_directory, check_names, pinned_model
from envrl.trainer.regularizing import Regularizers
from envrl.trainer.replaying import Replaying
from envrl.types import TrajectoryGroup


def new_config(config: Config) -> Config:
    """Return the configuration that a new run keeps to its end.

    It fixes the number of threads, the precision, and the revision of a model from the hub or `envrl models`.
    """
    threads = config.train.threads or usable_threads()
    prepare_torch(threads)  # the speed of each precision is measured with the same number
    return with_precision(pinned_model(replace(config, train=replace(config.train, threads=threads))))


def resumed_config(run: Path, config: Config) -> Config:
    """Return the configuration to resume a run with; raise `UserError` if it differs from the run's."""
    check_directory(run, resume=True)
    file = run / "config.toml"
    stored = load_recipe(str(file))
    if not config.train.threads:  # the run keeps its number of threads, whatever this machine has
        config = replace(config, train=replace(config.train, threads=stored.train.threads))
    config = in_place_of_auto(config, stored.train.precision, stored.rollout.precision)
    if not config.model.revision:
        config = replace(config, model=replace(config.model, revision=stored.model.revision))
    changed = config_differences(stored, config)
    if "model.path" in changed and stored.model.lora_rank:
        changed = _without_moved_base(run, config, changed)
    if not changed:
        return config
    if changed != ["train.updates"]:
        raise UserError(
            f"'{run}' was started with another configuration (other values of {', '.join(changed)}); go on with "
            f"'envrl train {file} --run {run} --resume', or use another --run"
        )
    before = f"'{run}' was started with train.updates = {stored.train.updates}"
    if config.train.updates < stored.train.updates:
        raise UserError(f"{before}: a run can get more updates, not fewer")
    kinds = {"auxiliary": stored.auxiliaries(), "reward": stored.rewards()}
    kinds |= {"regularizer": stored.regularizers(), "teacher": stored.teachers()}
    for kind, each in ((kind, each) for kind, weighed in kinds.items() for each in weighed):
        if each.common.schedule != "constant" and not each.common.schedule_updates:
            raise UserError(
                f"{before}, over which the weights of its losses fall; only with {kind}.{each.name}.schedule_updates "
                "set, or a constant schedule, can updates be added"
            )
    return config


def check_alike(config: Config, make_env: Callable[[], TextEnv]) -> None:
    """Raise `UserError` where the processes that train together have other recipes, plug-ins or data."""
    if ranks.count() == 1:
        return
    data = data_file(config.env.name, make_env(), (config.env.split, *config.eval.split))
    (first, known), *others = ranks.gather((config, data))
    for number, (other, theirs) in enumerate(others, 1):
        if changed := config_differences(first, other):
            raise UserError(f"process {number} has another recipe than process 0: other values of {', '.join(changed)}")
        if theirs != known:
            raise UserError(f"process {number} has other data of the world '{config.env.name}' than process 0")


def _without_moved_base(run: Path, config: Config, changed: list[str]) -> list[str]:
    """Return the changed keys, without `model.path` if it is the same base model at another place."""
    saved = [run / "checkpoints" / "latest", run / FOLDER]
    adapters = [folder for folder in saved if folder.is_dir()]
    if not adapters:
        return changed
    check_base(adapters[0], config.model.path)
    return [key for key in changed if key != "model.path"]


def check_inputs(config: Config, make_env: Callable[[], TextEnv], *, warm_start: bool) -> None:
    """Refuse what the schema cannot check: unknown names, and data, models and devices that are missing.

    `warm_start` is True if that stage is still to come.
    """
    check_names(config, make_env)
    for sentence in idle_settings(config):
        warnings.warn(sentence, stacklevel=2)
    trial = torch.tensor([-1.0, -2.0])
    TOKEN_LOSSES[config.objective.loss](trial, trial, trial, torch.tensor([0, 1]), **config.settings("loss"))
    _try_choices(config, make_env)
    find_device(config.train.device)
    if config.env.place == "ray":
        RayHosts(config.env.workers)  # it says what is wrong with the cluster
    sampler = {"device": config.train.device, **config.settings("sampler")}
    find("sampler", config.rollout.sampler).traits.get("check", lambda **_: None)(**sampler)
    if config.model.lora_rank:
        check_peft()
    if not warm_start:
        return
    Replaying(config).begin()
    Remembering(config).begin()
    if config.warm_start.path:
        source = Path(config.warm_start.path)
        if (source / "config.toml").is_file():
            raise UserError(f"warm_start.path = '{source}' is a run; name its folder '{source / 'warm_start'}'")
        verify_checkpoint(source)
        _check_budget(config)
        _check_model(source, config, make_env)
        _warn_of_other_origin(source, config)
        return
    if config.model.path:
        _check_model(model_folder(config.model.path, config.model.revision), config, make_env)
    if config.warm_start.demonstrations:
        check_demonstrator(config, make_env)


def _check_budget(config: Config) -> None:
    """Refuse a token budget that a shared warm start has spent."""
    budget = config.train.token_budget
    if budget and (spent := learned_in_warm_start(config, Path())) >= budget and config.train.updates:
        raise UserError(
            f"train.token_budget = {budget} leaves nothing for RL: the warm start in '{config.warm_start.path}' has "
            f"learned from {spent} tokens; raise it, or set train.updates = 0"
        )


def _try_choices(config: Config, make_env: Callable[[], TextEnv]) -> None:
    """Refuse a regularizer, and a user's auxiliary objective, reward or teacher, that fails on its first use."""
    _try_regularizers(config)
    auxiliaries = [*config.auxiliaries(), *config.auxiliaries("warm_start")]
    theirs = [each for each in auxiliaries if not find("auxiliary", each.name).ships]
    rewards = [each for each in config.rewards() if not find("reward", each.name).ships]
    teachers = [each for each in config.teachers() if not find("teacher", each.name).ships]
    if not (theirs or rewards or teachers or config.retry.name != "none"):
        return
    with opened(make_env()) as env:
        tasks = listed_tasks(env, config.env.split, config.env.name)
        played = attempt_script(env, tasks[0], partial(random_script, 0), config.env.max_steps)
    group = TrajectoryGroup(played.task, (played,))
    for each in theirs:
        try_out(each, group, config.rollout.layout)
    for reward in rewards:
        rewards_of(reward, [group], lambda examples: np.full(len(examples), 0.5))
    second_attempts([group], config, make_env)
    for teacher in teachers:
        lessons_of(teacher, [group])


def _try_regularizers(config: Config) -> None:
    """Refuse a regularizer that fails on its first use, before an update and after one."""
    regularizers, trial = Regularizers(config), torch.tensor([0.5, 1.0], requires_grad=True)
    for _ in range(2):
        for each in regularizers.values():
            each(PolicyTokens(-trial, trial, torch.tensor([0, 1])))
        regularizers.observe({"entropy": 0.7})
    regularizers.state()


def _check_model(folder: str | Path, config: Config, make_env: Callable[[], TextEnv]) -> None:
    """Refuse a model that cannot play the recipe; the run loads it again later.

    It is loaded on the device of the run: there its passes are fast, and the KV cache is tried on it (`admit_once`).
    """
    try:
        model = load_policy(folder, config)
        renderer_of(model, form_of(config))
        _warn_of_marks(model, folder, config)
        _check_context(config, folder, model.context)
        load_teachers(config, model.codec, model.context)
        check_room_of_run(model, make_env, config)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"memory ran out as the model in '{folder}' was tried on train.device = '{config.train.device}': 'envrl "
            "doctor RECIPE' says what a run needs and what to lower"
        ) from error
    del model
    release_memory()


def _warn_of_marks(model: LanguageModel, folder: str | Path, config: Config) -> None:
    """Warn if the format is `marks` and the chat model was never taught them."""
    warm, tokens = config.warm_start, Path(folder) / "tokenizer.json"
    known = tokens.is_file() and MARKS["end"] in tokens.read_text(encoding="utf-8", errors="replace")
    taught = known or warm.path or warm.demonstrations
    if not config.rollout.is_chat and model.codec.tokenizer.chat_template and not taught:
        warnings.warn(
            f"'{config.model.path}' is a chat model, and rollout.format = 'marks' asks it in marks that it never saw, "
            "without a warm start that teaches them: set rollout.format (such as 'action', docs/prompts.md), or "
            "warm_start.demonstrations",
            stacklevel=2,
        )


def _check_context(config: Config, folder: str | Path, context: int) -> None:
    """Refuse token budgets of prompt and response that exceed the model's context."""
    prompt, response = config.rollout.prompt_tokens, config.rollout.response_tokens
    if prompt + response > context or response >= context:
        asked = f"rollout.prompt_tokens = {prompt} and " if prompt else ""
        raise UserError(
            f"the context of '{folder}', {context} tokens, is too short for {asked}"
            f"rollout.response_tokens = {response}: lower what is asked, or take another model"
        )


def _warn_of_other_origin(source: Path, config: Config) -> None:
    """Warn about settings of this run that have no effect, since the shared warm start was made with others."""
    try:
        made = load_run(source.parent)
    except UserError:  # the folder was moved, or another version wrote it
        return
    idle = [
        key
        for key in config_differences(made, config)
        if key.startswith(("model.", "warm_start.")) and not key.endswith((".path", ".template_arguments"))
    ]
    if idle:
        warnings.warn(
            f"the warm start in '{source}' was made with other values of {', '.join(idle)}: this run's have no effect",
            stacklevel=2,
        )


@contextmanager
def held_run(run: Path, config: Config, make_env: Callable[[], TextEnv], resume: bool) -> Iterator[None]:
    """Create the run directory, or reopen it (recording a raised train.updates), and hold its lock."""
    splits = (config.env.split, *config.eval.split)
    if not ranks.is_first():
        ranks.wait()  # until the first has made it, or refused to
        yield
        return
    if resume:
        warn_of_other_data(run, config.env.name, make_env(), splits)
    else:
        create_run(run, dump_config(config), data_file(config.env.name, make_env(), splits))
    with ExitStack() as locks:
        locks.enter_context(lock_run(run))
        if resume and config_differences(load_recipe(str(run / "config.toml")), config):
            write_text(run / "config.toml", dump_config(config))
            locks.enter_context(lock_run(run))  # the lock is on the file, and this is another one now
        ranks.wait()
        try:
            yield
        except UserError:
            if not resume and not any((run / name).exists() for name in (FOLDER, PARTIAL)):
                shutil.rmtree(run)  # the input was wrong after all, and nothing is trained yet
            raise
