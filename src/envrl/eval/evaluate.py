"""`evaluate`: evaluate any agent (a run, a checkpoint, a model, a script) on splits, as a run evaluates itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from envrl.build import env_maker, env_options
from envrl.config.check import check_format, check_world
from envrl.config.load import override
from envrl.config.plugins import load_plugins
from envrl.config.schema import Config, EnvConfig, MemoryConfig
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.protocol import TextEnv
from envrl.envs.settings import WorldSettings
from envrl.errors import UserError
from envrl.eval.data import warn_of_other_data
from envrl.eval.kept import kept_in
from envrl.eval.record import Evaluated, Prompts, SoFar, each_split, summarize
from envrl.eval.split import SCRIPT, chosen_tasks, evaluate_script, evaluate_split
from envrl.eval.target import Target, find_target, with_base
from envrl.memories.remembering import Remembering
from envrl.models.checkpoints import weights_hash
from envrl.progress import Reporter
from envrl.registry import find
from envrl.rendering.prompts import find_format
from envrl.types import Trajectory

if TYPE_CHECKING:
    from envrl.models.load import LanguageModel


def evaluate(
    target: str | Path,
    *,
    env: str | None = None,
    data: str | Path | None = None,
    split: str | Sequence[str] | None = None,
    episodes: int | None = None,
    temperature: float | None = None,
    actions: str | None = None,
    seed: int | None = None,
    protocol: str | None = None,
    format: str | None = None,
    show_admissible: bool = True,
    history: int = 2,
    max_tokens: int = 512,
    free: int | None = None,
    probe: int | None = None,
    system_message: str = "",
    template_arguments: Mapping[str, Any] | None = None,
    settings: Sequence[tuple[str, str]] = (),
    episodes_to: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    memory: bool = True,
    so_far: SoFar = lambda _: None,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Return one record per split: the evaluation's settings, then the keys of eval.jsonl (docs/evaluation.md).

    `target` is a run (its latest checkpoint), a checkpoint or `RUN/warm_start` (verified), any folder that transformers
    loads, a name of `envrl models`, an id of the hub, or `random`, `walkthrough`, `expert`. The defaults come from the
    run's config.toml, else from the recipe defaults. `settings` are further keys of `[env]` with their values as text,
    such as `("env.distractors", "3")`; `model.path` gives the current path of a LoRA run's base model. Splits are
    played whole and in order; `episodes` takes a sample spread over each, and the `protocol` "published" draws 128 with
    repeats. `free` episodes of each split are played again unrestricted, and `probe` scripted episodes measure the
    model's knowledge of the world (default: the run's numbers, in proportion to `episodes`). A `format`
    (docs/prompts.md) is for a model without a run: it is asked as a chat, one turn at a time with the last `history`
    turns, for responses of at most `max_tokens`, with its own `system_message` and `template_arguments`. Episodes are
    kept in the file `episodes_to` as they end, and those already in it are not played again; `so_far` gets the records
    of an interrupted evaluation; `plugins` are the files that a run was made with, which it never loads by itself;
    `memory` False: a run with a memory is told nothing of it; the `reporter` shows progress, by default on standard
    error.
    Raises `UserError`.
    """
    load_plugins(map(str, plugins))
    resolved, settings = with_base(find_target(target), settings)
    config = with_settings(resolved.config, env, data, split, temperature, actions, seed, protocol)
    config = with_world_settings(config, settings)
    if not memory:
        config = without_memory(resolved, config)
    if format is not None:
        chat = (format, show_admissible, history, max_tokens, system_message, template_arguments or {})
        config = as_chat(resolved, config, *chat, actions=actions)
    if resolved.script and (temperature is not None or actions is not None):
        raise UserError(f"temperature and actions mean nothing to the script '{resolved.script}'; leave them out")
    return evaluate_as(
        resolved,
        config,
        episodes=episodes,
        free=free,
        probe=probe,
        episodes_to=episodes_to,
        so_far=so_far,
        reporter=reporter,
    ).records


def evaluate_as(
    agent: Target,
    config: Config,
    *,
    episodes: int | None = None,
    free: int | None = None,
    probe: int | None = None,
    episodes_to: str | Path | None = None,
    so_far: SoFar = lambda _: None,
    reporter: Reporter | None = None,
    depends: Mapping[str, Any] | None = None,
) -> Evaluated:
    """Evaluate an agent by a configuration; `depends` is `depends_on` where it is known, all else as for `evaluate`."""
    if not agent.script:
        check_world(config)
        check_format(config)
        config = played_here(config)
    _check_measured(agent, config, free, probe)
    make_env = env_maker(config)
    with opened(make_env()) as world:
        check_splits(world, config, episodes)
        if agent.run:
            warn_of_other_data(agent.run, config.env.name, world, config.eval.split)
    reporter = reporter or Reporter()
    model, english, prompts = None, dict[str, float](), Prompts()
    if not agent.script:
        from envrl.eval.language import figures_of_english
        from envrl.eval.prompts import model_prompts

        with reporter.phase("loading the model"):
            model = _loaded(agent, config)
            _check_room(model, make_env, config, episodes or 0, bare=not agent.run and config.rollout.is_chat)
        english, prompts = figures_of_english(model, config, reporter), model_prompts(model, config)
    memory = Remembering(config)
    if agent.run:
        memory.read(agent.folder)
    about = {"agent": agent.script or agent.name or str(agent.folder), **_played(agent, config)}
    counts = {"episodes": episodes or 0, "reporter": reporter}
    depends = depends_on(agent, config) if depends is None and episodes_to else depends or {}
    played: dict[str, Sequence[Trajectory]] = {}
    with kept_in(episodes_to, depends, lists=config.rollout.show_admissible) as kept:

        def measure(split: str) -> dict[str, Any]:
            if model is None:
                record, played[split] = evaluate_script(agent.script, make_env, split, config, kept=kept, **counts)
                return record
            measured = {"free": free, "probed": probe, "memory": memory}
            record, played[split] = evaluate_split(model, make_env, split, config, kept=kept, **measured, **counts)
            return record | english

        def ended(split: str) -> tuple[int, dict[str, Any]]:
            with opened(make_env()) as world:
                chosen = chosen_tasks(world, split, config, episodes or 0)
            actions = SCRIPT if model is None else config.rollout.actions
            return len(chosen), {"split": split, **summarize(kept.find(actions, split, chosen))}

        records = each_split(config.eval.split, measure, ended, so_far, about)
    return Evaluated(records, played, prompts)


def check_splits(world: TextEnv, config: Config, episodes: int | None) -> None:
    """Raise `UserError` for a split that is unknown or empty, and for a number of episodes below 1."""
    if episodes is not None and episodes < 1:
        raise UserError(f"episodes must be at least 1, not {episodes}; leave it out for whole splits")
    for name in config.eval.split:
        if not listed_tasks(world, name, config.env.name):
            raise UserError(f"the split '{name}' of the world '{config.env.name}' is empty; there is nothing to play")


def _check_measured(target: Target, config: Config, free: int | None, probe: int | None) -> None:
    """Raise `UserError` for invalid numbers of unrestricted and scripted episodes."""
    for name, count in (("free", free), ("probe", probe)):
        if count is not None and count < 0:
            raise UserError(f"{name} must be at least 0, not {count}")
        if count is not None and target.script:
            raise UserError(f"{name} is measured of a model, not of the script '{target.script}'; leave it out")
    if free and config.rollout.actions == "free":
        raise UserError("free means episodes without restriction, and all of these are; leave it out, or say free = 0")


def with_settings(
    config: Config,
    env: str | None,
    data: str | Path | None,
    split: str | Sequence[str] | None,
    temperature: float | None,
    actions: str | None,
    seed: int | None,
    protocol: str | None,
) -> Config:
    """Return the configuration with these values; another world does not inherit the old one's data and settings."""
    if temperature is not None and not (temperature == 0.0 or 0.01 <= temperature < float("inf")):
        raise UserError(
            f"temperature must be 0 (the most likely token) or a number of at least 0.01, not {temperature}"
        )
    if actions not in (None, "admissible", "free"):
        raise UserError(f"actions must be 'admissible' or 'free', not '{actions}'")
    if protocol not in (None, "whole", "published"):
        raise UserError(f"protocol must be 'whole' or 'published', not '{protocol}'")
    splits = config.eval.split if split is None else (split,) if isinstance(split, str) else tuple(split)
    if not splits:
        raise UserError("split must name at least one split")
    where = config.env
    if env is not None and env != where.name:
        # Settings that all worlds have stay; those of one world (data, a shop's products) do not.
        kept = {name: getattr(where, name) for name in ("split", "max_steps", *(f.name for f in fields(WorldSettings)))}
        where = EnvConfig(name=env, **kept)
    return replace(
        config,
        env=where if data is None else replace(where, data=str(data)),
        rollout=replace(config.rollout, actions=actions or config.rollout.actions),
        eval=replace(
            config.eval,
            split=splits,
            temperature=config.eval.temperature if temperature is None else temperature,
            seed=config.eval.seed if seed is None else seed,
            protocol=config.eval.protocol if protocol is None else protocol,
        ),
    )


def with_world_settings(config: Config, settings: Sequence[tuple[str, str]]) -> Config:
    """Return the configuration with keys of `[env]` set; raise `UserError` for other keys."""
    own = {"env.name": "--env", "env.data": "--data", "env.split": "--split"}
    for key, _ in settings:
        if key in own:
            raise UserError(f"an evaluation takes {own[key]} in place of {key}")
        if not key.startswith("env."):
            raise UserError(f"an evaluation can set keys of [env] alone, not '{key}': all others are the run's own")
    return override(config, settings)


def played_here(config: Config) -> Config:
    """Return the configuration with the built-in sampler, where a run's needs a server, a cluster or an engine."""
    if not find("sampler", config.rollout.sampler).traits.get("apart"):
        return config
    beginning = f"rollout.{config.rollout.sampler}."
    owned = {key: value for key, value in config.owned.items() if not key.startswith(beginning)}
    return replace(config, rollout=replace(config.rollout, sampler="own"), owned=owned)


def without_memory(target: Target, config: Config) -> Config:
    """Return the configuration of a run that is told nothing of its memory; raise `UserError` if it has none."""
    if config.memory.name == "none":
        raise UserError(f"'{target.script or target.name or target.folder}' has no memory to be left out")
    return replace(config, memory=MemoryConfig())


def world_settings(config: Config) -> dict[str, Any]:
    """Return the non-default settings of the world."""
    settings = {field.name: getattr(config.env, field.name) for field in fields(WorldSettings)}
    return {name: value for name, value in settings.items() if value != getattr(EnvConfig(), name)}


def world_options(config: Config) -> dict[str, Any]:
    """Return the keyword arguments of the world's factory, without the folder of its data."""
    return {name: value for name, value in env_options(config).items() if name != "data"}


def _check_room(
    model: LanguageModel, make_env: Callable[[], TextEnv], config: Config, episodes: int, *, bare: bool
) -> None:
    """Raise `UserError` if no episode can begin; `bare`: the agent is a chat model without a run."""
    from envrl.eval.context_check import check_room

    with opened(make_env()) as world:
        tasks = {name: [task for task, _ in chosen_tasks(world, name, config, episodes)] for name in config.eval.split}
    if bare:
        less = ["leave the commands out (show_admissible)"] * config.rollout.show_admissible
        check_room(model, make_env, tasks, config, [*less, "take a model with a longer context"], "lower max_tokens")
    else:
        given = ["play another split or world", "take a run whose model has a longer context"]
        check_room(model, make_env, tasks, config, given)


def as_chat(
    target: Target,
    config: Config,
    format: str,
    show_admissible: bool = True,
    history: int = 2,
    max_tokens: int = 512,
    system_message: str = "",
    template_arguments: Mapping[str, Any] = MappingProxyType({}),
    *,
    actions: str | None = None,
) -> Config:
    """Return the configuration of a chat model without a run: one chat per turn, which shows the last turns."""
    find_format(format)
    if target.script or target.run:
        raise UserError(f"format is for a model's folder or an endpoint; '{target.script or target.run}' has its own")
    if history < 0 or max_tokens < 1:
        raise UserError(f"history must be at least 0 and max_tokens at least 1, not {history} and {max_tokens}")
    rollout = replace(
        config.rollout,
        format=format,
        layout="steps",
        history=history,
        show_admissible=show_admissible,
        response_tokens=max_tokens,
        actions=actions or "free",
        system_message=system_message,
    )
    model = replace(config.model, path=str(target.folder), template_arguments=dict(template_arguments))
    return replace(config, rollout=rollout, model=model)


def said_before(system_message: str, template_arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's entries of the chat's system message and template arguments, without empty ones."""
    entries = {"system_message": system_message, "template_arguments": dict(template_arguments)}
    return {name: value for name, value in entries.items() if value}


def drawn(config: Config) -> dict[str, str]:
    """Return a record's entry of the protocol, empty for whole splits."""
    return {} if config.eval.protocol == "whole" else {"protocol": config.eval.protocol}


def _loaded(target: Target, config: Config) -> LanguageModel:
    """Return the model on the run's device, or on the CPU if this machine does not have that."""
    from envrl.models.load import find_device, load_policy
    from envrl.models.runtime import prepare_torch

    prepare_torch(config.train.threads)
    try:
        find_device(config.train.device)
    except UserError:
        return load_policy(target.folder, config, "cpu")
    return load_policy(target.folder, config, config.train.device)


def _played(target: Target, config: Config) -> dict[str, Any]:
    """Return a record's entries of how its episodes were played."""
    played = {"env": config.env.name, "max_steps": config.env.max_steps, **world_settings(config)}
    if target.run and target.config.env.name != config.env.name:
        played["trained_on"] = target.config.env.name
    played |= {"seed": config.eval.seed, **drawn(config)}
    if target.script:
        return played
    played |= {"temperature": config.eval.temperature, "actions": config.rollout.actions}
    if config.memory.name != "none":
        played["memory"] = config.memory.name
    if target.name and target.config.model.revision:
        played["revision"] = target.config.model.revision
    if not target.run and config.rollout.is_chat:
        shown = ("format", "show_admissible", "history")
        played |= {name: getattr(config.rollout, name) for name in shown}
        played["max_tokens"] = config.rollout.response_tokens
        played |= said_before(config.rollout.system_message, config.model.template_arguments)
    return played


def depends_on(target: Target, config: Config) -> dict[str, Any]:
    """Return everything that an episode depends on, except its task, its member and the restriction of its actions."""
    about = {"env": config.env.name, "max_steps": config.env.max_steps, **world_settings(config)}
    about |= {**world_options(config), "seed": config.eval.seed}
    if target.script:
        return {"agent": target.script, **about}
    rollout = asdict(config.rollout)
    prompt = ("format", "layout", "history", "summary", "prompt_tokens", "show_admissible", "repeat_task")
    form = {name: rollout[name] for name in (*prompt, "system_message", "response_tokens", "precision")}
    form |= {"template_arguments": config.model.template_arguments, "chat_template": config.model.chat_template}
    if config.memory.name != "none":
        form["memory"] = config.memory.name  # what is in it is a file beside the weights
    return {"weights": weights_hash(target.folder), **about, "temperature": config.eval.temperature, **form}
