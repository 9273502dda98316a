"""Checks of values that are each in range but contradict each other."""

from __future__ import annotations

import re
from dataclasses import fields

from envrl.config.schema import Auxiliary, AuxiliaryConfig, Config, RegularizerConfig, RewardConfig, TeacherConfig
from envrl.errors import UserError, suggest
from envrl.registry import KINDS, find

PRESETS = ("tiny",)


def check_together(config: Config) -> None:
    """Raise `UserError` for values of a configuration that contradict each other."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", config.train.device):
        raise UserError(f"train.device must be 'cpu', 'cuda' or 'cuda:N', not '{config.train.device}'")
    if not config.env.name:
        raise UserError("env.name must name a world, and is empty")
    if not config.env.split:
        raise UserError("env.split must name a split to train on, and is empty")
    for kind, of in KINDS.items():
        if of.key:
            config.settings(kind)
    if not find("sampler", config.rollout.sampler).traits.get("trains", True):
        raise UserError(
            f"the sampler '{config.rollout.sampler}' gives no log-probs, so nothing can be trained with it: 'envrl "
            "eval MODEL --base-url ADDRESS' plays with a model behind an endpoint"
        )
    sampler = find("sampler", config.rollout.sampler).traits
    if config.model.lora_rank and not sampler.get("adapters", True):
        raise UserError(
            f"rollout.sampler = '{config.rollout.sampler}' takes whole weights, and no adapter yet: set "
            "model.lora_rank = 0"
        )
    if config.rollout.actions != "free" and not sampler.get("restricts", True):
        raise UserError(
            f"rollout.sampler = '{config.rollout.sampler}' cannot restrict sampling to the admissible commands: set "
            "rollout.actions = 'free'"
        )
    _check_model(config)
    check_world(config)
    _check_learning(config)
    if 0.0 < config.eval.temperature < 0.01:
        raise UserError(
            f"eval.temperature must be 0 (the most likely token) or at least 0.01, not {config.eval.temperature:g}"
        )
    splits = config.eval.split
    if not splits or len(set(splits)) < len(splits) or not all(splits):
        raise UserError(f"eval.split must list at least one split, each once, not {list(splits)}")


def check_processes(config: Config, count: int) -> None:
    """Raise `UserError` where a recipe's engine is one of a single process."""
    if count > 1 and not find("engine", config.train.engine).traits.get("shards"):
        raise UserError(
            f"{count} processes were started together, and train.engine = '{config.train.engine}' is an engine of one: "
            "set train.engine = 'sharded'"
        )


def _check_model(config: Config) -> None:
    model, rollout = config.model, config.rollout
    if model.path:
        return
    if model.lora_rank:
        raise UserError(
            f"model.lora_rank = {model.lora_rank} needs model.path, a trained model for the adapter to belong to; set "
            "that, or lora_rank = 0"
        )
    if model.preset not in PRESETS:
        raise UserError(f"unknown model.preset '{model.preset}'{suggest(model.preset, PRESETS)}")
    if model.hidden_size % (2 * model.heads):
        raise UserError(
            f"model.hidden_size = {model.hidden_size} must be a multiple of twice model.heads = {model.heads}, "
            "since rotary positions turn pairs of a head's numbers"
        )
    if model.heads % model.key_heads:
        raise UserError(
            f"model.heads = {model.heads} must be a multiple of model.key_heads = {model.key_heads}, since heads share "
            "keys in groups of one size"
        )
    if rollout.response_tokens >= model.context:
        raise UserError(
            f"rollout.response_tokens = {rollout.response_tokens} leaves no room for a prompt "
            f"in model.context = {model.context}"
        )


def check_world(config: Config) -> None:
    """Raise `UserError` for settings of the world that contradict a setting of the rollout."""
    if not config.env.hide_admissible:
        return
    rollout = config.rollout
    hidden = "env.hide_admissible = true hides the world's list of commands, which"
    if rollout.actions == "admissible":
        raise UserError(f"{hidden} rollout.actions = 'admissible' restricts sampling to: set it to 'free'")
    if rollout.show_admissible:
        raise UserError(f"{hidden} rollout.show_admissible = true puts in the prompt: set one of them to false")
    if rollout.invalid_penalty > 0:
        raise UserError(f"{hidden} rollout.invalid_penalty needs to tell valid commands: set it to 0")


def _check_learning(config: Config) -> None:
    rollout, objective = config.rollout, config.objective
    if rollout.group_size < 2 and find("estimator", objective.estimator).traits.get("compares"):
        raise UserError(
            f"rollout.group_size must be at least 2, not {rollout.group_size}: '{objective.estimator}' compares the "
            "episodes of a group"
        )
    if objective.constant and objective.aggregation != "constant":
        raise UserError(
            f"objective.constant = {objective.constant} is for objective.aggregation = 'constant', and that is "
            f"'{objective.aggregation}': set it, or leave the constant out"
        )
    if find("estimator", objective.estimator).traits.get("plans") and not find("format", rollout.format).traits.get(
        "plans"
    ):
        raise UserError(
            f"objective.estimator = '{objective.estimator}' judges sub-goals, and rollout.format = '{rollout.format}' "
            "has none: set it to 'subgoal', with rollout.actions = 'free'"
        )
    _check_kl(config)
    if rollout.max_steps > config.env.max_steps:
        raise UserError(
            f"rollout.max_steps = {rollout.max_steps} is above env.max_steps = {config.env.max_steps}, at which every "
            "episode ends; lower it, or set 0 for the same"
        )
    if config.train.minibatch_rows and config.train.minibatches > 1:
        raise UserError(
            f"train.minibatch_rows = {config.train.minibatch_rows} and train.minibatches = "
            f"{config.train.minibatches} say the same in two ways: leave one of them out"
        )
    if 0.0 < objective.importance_cap < 1.0:
        raise UserError(
            f"objective.importance_cap must be at least 1, or 0 to switch it off, not {objective.importance_cap}: a "
            "lower one would shrink tokens that sampler and trainer agree on"
        )
    if 0.0 < objective.importance_mask <= 1.0:
        raise UserError(
            f"objective.importance_mask must be above 1, or 0 to switch it off, not {objective.importance_mask}: it is "
            "the factor by which a token's probability may have changed, either way"
        )
    if rollout.repeat_task and rollout.layout == "steps":
        raise UserError(
            "rollout.repeat_task = true needs rollout.layout = 'concat': every prompt of the layout 'steps' begins "
            "with the task already"
        )
    check_format(config)
    warm = config.warm_start
    if warm.method != "imitation" and not (warm.demonstrations or warm.path):
        raise UserError(
            f"warm_start.method = '{warm.method}' goes on from demonstrations, and warm_start.demonstrations = 0: ask "
            "for some"
        )
    _check_thoughts(config)
    if warm.noise > 0 and warm.demonstrator == "walkthrough":
        raise UserError(
            "warm_start.noise needs warm_start.demonstrator = 'expert': a walkthrough that is led astray does not find "
            "back"
        )
    for stage, table in (("", "auxiliary"), ("warm_start", "warm_start.auxiliary")):
        for each in config.auxiliaries(stage):
            _check_auxiliary(each, f"{table}.{each.name}", rollout.layout)
            _check_writing(each, f"{table}.{each.name}", config)
            if stage:
                _check_imitated(each, f"{table}.{each.name}")
    for reward in config.rewards():
        _check_weight(reward.common, f"reward.{reward.name}")
    for each in config.regularizers():
        _check_weight(each.common, f"regularizer.{each.name}")
    _check_teachers(config)
    _check_retry(config)
    _check_memory(config)


def _check_thoughts(config: Config) -> None:
    """Raise `UserError` for a warm start in which the model writes thoughts, where its responses have no room."""
    warm, rollout = config.warm_start, config.rollout
    if warm.path or not find("warm_start", warm.method).traits.get("thinks"):
        return
    if not find("format", rollout.format).traits.get("thinks"):
        raise UserError(
            f"warm_start.method = '{warm.method}' has the model write thoughts before its commands, and rollout.format "
            f"= '{rollout.format}' has no room for them: set it to 'tags', 'react' or 'plan'"
        )


def _check_kl(config: Config) -> None:
    objective = config.objective
    if not objective.kl_weight:
        return
    given = f"objective.kl_estimator = '{objective.kl_estimator}' with objective.kl_in = '{objective.kl_in}'"
    if objective.kl_in == "loss" and objective.kl_estimator == "k1":
        raise UserError(
            f"{given} does nothing: the mean of its gradient is 0; set kl_in = 'reward', or kl_estimator = 'k2', whose "
            "gradient as a loss is that of k1 in the reward"
        )
    if objective.kl_in == "reward" and objective.kl_estimator != "k1":
        why = {"k2": "is not the KL in the mean", "k3": "hardly pulls the policy back where it is near the reference"}
        raise UserError(
            f"{given} is biased: in the reward, {objective.kl_estimator} {why[objective.kl_estimator]}; set "
            "kl_estimator = 'k1', or kl_in = 'loss'"
        )
    if objective.kl_in == "reward" and find("estimator", objective.estimator).traits.get("positive"):
        raise UserError(
            f"{given} makes returns negative, and objective.estimator = '{objective.estimator}' is for returns from 0 "
            "on: set kl_in = 'loss' with kl_estimator = 'k2', or take 'grpo'"
        )


def check_format(config: Config) -> None:
    """Raise `UserError` for settings that the prompt format does not support."""
    rollout, model = config.rollout, config.model
    if not rollout.is_chat:
        of_chats = {
            "rollout.summary = true": rollout.summary,
            f"rollout.prompt_tokens = {rollout.prompt_tokens}": rollout.prompt_tokens,
            "rollout.system_message": rollout.system_message,
            "model.template_arguments": model.template_arguments,
        }
        for key in (key for key, asked in of_chats.items() if asked):
            raise UserError(f"{key} is for chats; set rollout.format to one of them, or leave it out")
        return
    chat = f"rollout.format = '{rollout.format}' is a chat"
    if not model.path and not model.chat_template:
        raise UserError(
            f"{chat}, and a model built from scratch has no chat template: set model.chat_template = 'chatml'"
        )
    if find("format", rollout.format).traits.get("plans") and rollout.summary:
        raise UserError(f"{chat} whose prompts recall its sub-goal, and no summary: set rollout.summary = false")
    if rollout.repeat_task:
        raise UserError(f"{chat}, whose prompts say the task themselves: set rollout.repeat_task = false")
    if rollout.actions == "admissible" and (rollout.summary or not find("format", rollout.format).traits.get("bare")):
        raise UserError(
            f"{chat} in which the model writes more than its command, so sampling cannot be restricted to the "
            "admissible commands: set rollout.actions = 'free', or rollout.format = 'action'"
        )
    if rollout.summary and rollout.layout != "steps":
        raise UserError("rollout.summary = true needs rollout.layout = 'steps': a chat that goes on shows every turn")


def _check_auxiliary(auxiliary: Auxiliary, table: str, layout: str) -> None:
    entry, common = find("auxiliary", auxiliary.name), auxiliary.common
    for name in sorted(auxiliary.settings.keys() & {setting.name for setting in fields(AuxiliaryConfig)}):
        raise UserError(f"the {entry.called} has a setting '{name}' of its own, which every one has: rename it")
    _check_weight(common, table)
    if common.select in ("novel", "uncertain") and common.fraction == 1.0:
        raise UserError(
            f"{table}.select = '{common.select}' says which transitions come first, so {table}.fraction must be below 1"
        )
    if not auxiliary.in_pass:
        return
    if common.reservoir:
        raise UserError(
            f"{table}.reservoir = {common.reservoir} is for rows of their own: '{auxiliary.name}' has tokens of the "
            "policy's, and those of earlier updates are gone"
        )
    if layout == "steps":
        raise UserError(
            f"{table}.weight needs rollout.layout = 'concat': a row of the layout 'steps' ends before the next "
            "observation"
        )
    if common.tokens == "all":
        raise UserError(
            f"{table}.tokens = 'all' is for rows of their own: '{auxiliary.name}' has tokens of the policy's"
        )


def _check_writing(auxiliary: Auxiliary, table: str, config: Config) -> None:
    """Raise `UserError` for an objective whose targets the policy writes, where it cannot."""
    traits = find("auxiliary", auxiliary.name).traits
    if traits.get("chat") and not config.rollout.is_chat:
        raise UserError(
            f"{table}.weight needs a chat, in which the model can be asked in words: set rollout.format (such as "
            f"'action', docs/prompts.md), or leave '{auxiliary.name}' out"
        )


def _check_retry(config: Config) -> None:
    name, objective = config.retry.name, config.objective
    if name == "none":
        return
    if config.replay.name != "none":
        raise UserError(
            f"retry.name = '{name}' with replay.name = '{config.replay.name}': a replay would keep episodes that were "
            "played with help as the policy's own; leave one of them out"
        )
    if config.rollout.ahead:
        raise UserError(
            f"retry.name = '{name}' with rollout.ahead = {config.rollout.ahead}: what is played ahead is not tried "
            "again yet; leave one of them out"
        )
    if objective.kl_weight and objective.kl_in == "reward":
        raise UserError(
            f"retry.name = '{name}' with objective.kl_in = 'reward': second attempts were drawn from a policy that was "
            "helped, whose log-probs say nothing of the KL; set kl_in = 'loss' with kl_estimator = 'k2'"
        )


def _check_memory(config: Config) -> None:
    name, engine = config.memory.name, config.train.engine
    if not config.learns and name == "none":
        raise UserError(
            f"train.engine = '{engine}' leaves the weights as they are, and memory.name = 'none' keeps nothing: such a "
            "run would learn nothing; choose a memory (memrl), or another engine"
        )
    if name != "none" and config.retry.name != "none":
        raise UserError(
            f"memory.name = '{name}' with retry.name = '{config.retry.name}': second attempts are learned from without "
            "what they were told, and a memory's episodes with it; leave one of them out"
        )
    if name != "none" and config.rollout.ahead:
        raise UserError(
            f"memory.name = '{name}' with rollout.ahead = {config.rollout.ahead}: what is played ahead would be told "
            "from the memory of an earlier update; leave one of them out"
        )


def _check_teachers(config: Config) -> None:
    teachers = config.teachers()
    for each in teachers:
        _check_weight(each.common, f"teacher.{each.name}")
        if each.key and not each.model:
            raise UserError(
                f"teacher.{each.name}.weight needs teacher.{each.name}.{each.key}, the folder of the teacher's model: "
                "set it, or leave the teacher out"
            )
    if not config.objective.policy_weight and not (teachers or config.auxiliaries()):
        raise UserError(
            "objective.policy_weight = 0 leaves nothing to learn from: give a teacher or an auxiliary objective a "
            "weight, or leave it out"
        )


def _check_weight(common: AuxiliaryConfig | RegularizerConfig | RewardConfig | TeacherConfig, table: str) -> None:
    if common.floor > common.weight:
        raise UserError(
            f"{table}.floor = {common.floor:g} is above {table}.weight = {common.weight:g}, which falls to it over the "
            "schedule"
        )
    if common.floor and common.schedule == "constant":
        raise UserError(
            f"{table}.floor = {common.floor:g} needs a schedule that falls: set {table}.schedule, or floor = 0"
        )


def _check_imitated(auxiliary: Auxiliary, table: str) -> None:
    """Raise `UserError` for what chooses among an update's episodes: a warm start has its demonstrations."""
    entry, common = find("auxiliary", auxiliary.name), auxiliary.common
    if entry.traits.get("played"):
        raise UserError(
            f"{table}.weight: the {entry.called} is about episodes that the policy played, and a warm start imitates "
            "those of a script: leave it out"
        )
    for name, value in (("select", common.select), ("reservoir", common.reservoir)):
        if value not in ("all", 0):
            raise UserError(
                f"{table}.{name} = {value!r} chooses among the episodes of updates, and a warm start has its "
                "demonstrations, all won: leave it out"
            )
