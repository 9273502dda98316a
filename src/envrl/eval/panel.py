"""Play a panel: a pinned set of tasks, evaluated as `envrl eval` does, for a record that can be had again."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from envrl.build import env_maker
from envrl.config.load import override
from envrl.config.plugins import load_plugins, recorded_plugins
from envrl.config.schema import Config, EnvConfig
from envrl.envs.answers import opened
from envrl.envs.data import VARIABLES, data_folder, fingerprint_of
from envrl.errors import UserError, suggest
from envrl.eval.client import Endpoint
from envrl.eval.contents import contents_sha256
from envrl.eval.endpoint import evaluate_endpoint
from envrl.eval.evaluate import as_chat, check_splits, depends_on, evaluate_as
from envrl.eval.prompts import endpoint_prompts
from envrl.eval.record import Prompts, SoFar
from envrl.eval.split import chosen_tasks
from envrl.eval.target import Target, find_target, with_base
from envrl.panels import VERSION, Asked, Outcome, Panel, PanelRecord
from envrl.progress import Reporter
from envrl.rendering.messages import MessageWriter
from envrl.rendering.prompts import find_format, with_thought
from envrl.rendering.responses import Thought
from envrl.types import Trajectory

_SAMPLING = ("temperature", "seed", "precision", "response_tokens")
_FORM = (
    *("format", "layout", "history", "summary", "prompt_tokens", "show_admissible", "repeat_task"),
    *("system_message", "template_arguments", "chat_template"),
)
_CHAT = ("format", "show_admissible", "history", "max_tokens", "system_message", "template_arguments")


@dataclass(frozen=True, slots=True)
class _Played:
    """What an evaluation adds to a record."""

    agent: Mapping[str, Any]
    prompt: Mapping[str, Any]
    sampling: Mapping[str, Any]
    results: Sequence[dict[str, Any]]
    episodes: Mapping[str, Sequence[Trajectory]]
    packages: Sequence[str] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _How:
    """Where episodes are kept, and what the user sees, as for `evaluate`."""

    episodes_to: str | Path | None
    so_far: SoFar
    reporter: Reporter


def play_panel(
    panel: Panel,
    asked: Asked,
    *,
    before: PanelRecord | None = None,
    plugins: Sequence[str | Path] = (),
    episodes_to: str | Path | None = None,
    so_far: SoFar = lambda _: None,
    reporter: Reporter | None = None,
) -> PanelRecord:
    """Evaluate an agent on a panel; the panel of the record has the hash of the set that was played.

    `before` is a record to repeat: its revision of the model, its weights, its plug-ins and its number of threads are
    taken. All else is as for `evaluate`. Raises `UserError`, also where the set is not the pinned one.
    """
    named = before.agent.get("plugins", ()) if before else ()
    loaded = tuple(dict.fromkeys([*load_plugins(map(str, plugins)), *recorded_plugins(named)]))
    how = _How(episodes_to, so_far, reporter or Reporter())
    if asked.base_url is not None:
        config = on_panel(Config(), panel, asked.data)
        panel = pinned(panel, config)
        played = _endpoint(panel, asked, config.env.data, how)
    else:
        agent, config = _agent(asked, before)
        config = on_panel(config, panel, asked.data)
        panel = pinned(panel, config)
        played = _script(agent, config, panel, how) if agent.script else _model(agent, config, panel, before, how)
    return PanelRecord(
        version=VERSION,
        panel=panel,
        asked=asked,
        agent={**played.agent, **({"plugins": list(loaded)} if loaded else {})},
        prompt=dict(played.prompt),
        sampling=dict(played.sampling),
        packages={"envrl source": _source_sha256()}
        | {name: _version(name) for name in ("envrl", "numpy", *played.packages)},
        machine={"python": platform.python_version(), "processor": platform.machine(), **played.machine},
        results=list(played.results),
        outcomes=[_outcome(split, each) for split, some in played.episodes.items() for each in some],
    )


def on_panel(config: Config, panel: Panel, data: str | None) -> Config:
    """Return an agent's configuration in the panel's world, with the panel's settings and none of its own of a world.

    The folder of the data is the agent's own if it is of this world, unless `data` names one. Raises `UserError` where
    the panel needs data and there is none.
    """
    if panel.needs and panel.needs not in VARIABLES:
        raise UserError(f"the panel '{panel.name}' needs unknown data '{panel.needs}'{suggest(panel.needs, VARIABLES)}")
    own = config.env if config.env.name == panel.env else EnvConfig()
    folder = str(data_folder(panel.needs, data or own.data)) if panel.needs else data or own.data
    env = EnvConfig(name=panel.env, data=folder, max_steps=panel.max_steps, workers=own.workers, timeout=own.timeout)
    measured = {"split": panel.splits, "temperature": panel.temperature, "seed": panel.seed, "protocol": "whole"}
    owned = {key: value for key, value in config.owned.items() if not key.startswith("env.")}
    return override(replace(config, env=env, owned=owned, eval=replace(config.eval, **measured)), _settings(panel))


def pinned(panel: Panel, config: Config) -> Panel:
    """Return the panel with the number of its tasks and their hash; raises `UserError` where they are not the pinned.

    `config` says where the data lies.
    """
    with opened(env_maker(config)()) as world:
        check_splits(world, config, None)
        tasks = {
            split: [task for task, _ in chosen_tasks(world, split, config, panel.episodes)] for split in panel.splits
        }
        found = contents_sha256(world, tasks)
    count = sum(map(len, tasks.values()))
    if panel.sha256 and found != panel.sha256:
        counts = f"{count} in place of {panel.tasks} tasks" if count != panel.tasks else f"{count} tasks as well"
        raise UserError(
            f"the data of '{panel.env}' here is not that of the panel '{panel.name}' (SHA-256 {found[:12]}…, the "
            f"panel's {panel.sha256[:12]}…; {counts}): figures on it could not be compared; get the data that "
            "docs/data.md names, or pin another set in a panel file of your own"
        )
    return replace(panel, tasks=count, sha256=found)


def _agent(asked: Asked, before: PanelRecord | None) -> tuple[Target, Config]:
    """Return the agent and its configuration, as a chat if it is asked as one."""
    base = [("model.path", asked.base)] if asked.base is not None else []
    agent, _ = with_base(find_target(asked.target, before.agent.get("revision", "") if before else ""), base)
    config = agent.config
    if asked.format is not None:
        config = as_chat(agent, config, **asked.given(*_CHAT))
    if asked.actions is not None:
        if agent.script:
            raise UserError(f"actions mean nothing to the script '{agent.script}'; leave them out")
        if asked.actions not in ("admissible", "free"):
            raise UserError(f"actions must be 'admissible' or 'free', not '{asked.actions}'")
        config = replace(config, rollout=replace(config.rollout, actions=asked.actions))
    return agent, config


def _script(agent: Target, config: Config, panel: Panel, how: _How) -> _Played:
    done = evaluate_as(agent, config, episodes=panel.episodes or None, **_kept(how))
    about = {"kind": "script", "name": agent.script}
    return _Played(about, {}, {"seed": panel.seed}, done.records, done.episodes)


def _model(agent: Target, config: Config, panel: Panel, before: PanelRecord | None, how: _How) -> _Played:
    with how.reporter.phase("hashing the model"):
        depends = depends_on(agent, config)
    about = {"kind": "model", "weights_sha256": depends["weights"]}
    if config.model.revision:
        about["revision"] = config.model.revision
    if before is not None:
        if before.agent.get("weights_sha256") != about["weights_sha256"]:
            raise UserError(
                f"'{agent.name or agent.folder}' holds other weights than the record's (SHA-256 "
                f"{about['weights_sha256'][:12]}…, then {str(before.agent.get('weights_sha256'))[:12]}…): say where "
                "that model lies now, envrl panel MODEL --repeat FILE"
            )
        config = replace(config, train=replace(config.train, threads=int(before.machine.get("threads", 0))))
    counts = {"episodes": panel.episodes or None, "free": 0, "probe": 0}
    done = evaluate_as(agent, config, **counts, depends=depends, **_kept(how))
    import torch

    device = config.train.device if torch.cuda.is_available() else "cpu"
    return _Played(
        about,
        {**{name: depends[name] for name in _FORM}, **_said(done.prompts)},
        {**{name: depends[name] for name in _SAMPLING}, "actions": config.rollout.actions},
        done.records,
        done.episodes,
        ("torch", "transformers", "tokenizers"),
        {"device": device, "threads": torch.get_num_threads()},
    )


def _endpoint(panel: Panel, asked: Asked, data: str, how: _How) -> _Played:
    if asked.actions is not None:
        raise UserError("actions mean nothing to an endpoint, whose model writes freely; leave them out")
    told = ("base_url", "key_variable", "max_tokens", "concurrency", "timeout", "retries", "template_arguments")
    endpoint = Endpoint(model=asked.target, temperature=panel.temperature, **asked.given(*told))
    form = asked.given("format", "show_admissible", "history", "system_message")
    episodes: dict[str, Sequence[Trajectory]] = {}
    results = evaluate_endpoint(
        endpoint,
        **form,
        env=panel.env,
        data=data or None,
        split=panel.splits,
        episodes=panel.episodes or None,
        seed=panel.seed,
        settings=[("env.max_steps", str(panel.max_steps)), *_settings(panel)],
        played=episodes.__setitem__,
        **_kept(how),
    )
    shown = {name: results[0][name] for name in ("format", "show_admissible", "history")}
    said = {"system_message": asked.system_message or "", "template_arguments": dict(endpoint.template_arguments)}
    chat = with_thought(find_format(shown["format"]), Thought())
    writer = MessageWriter(chat, shown["history"], shown["show_admissible"], said["system_message"])
    return _Played(
        {"kind": "endpoint", "model": endpoint.model, "base_url": endpoint.base_url},
        {**shown, "layout": "steps", **said, **_said(endpoint_prompts(writer))},
        {"temperature": panel.temperature, "seed": panel.seed, "max_tokens": endpoint.max_tokens, "actions": "free"},
        results,
        episodes,
        ("openai",),
    )


def _kept(how: _How) -> dict[str, Any]:
    return {"episodes_to": how.episodes_to, "so_far": how.so_far, "reporter": how.reporter}


def _settings(panel: Panel) -> list[tuple[str, str]]:
    """Return the panel's further keys of `[env]` with their values as text."""
    written = {key: value if isinstance(value, str) else json.dumps(value) for key, value in panel.settings.items()}
    return [(f"env.{key}", value) for key, value in written.items()]


def _said(prompts: Prompts) -> dict[str, str]:
    return {"example": prompts.said, "sha256": prompts.sha256}


def _outcome(split: str, trajectory: Trajectory) -> Outcome:
    commands = "\n".join(step.action.text for step in trajectory.transitions)
    return Outcome(
        split=split,
        task=trajectory.task.id,
        member=trajectory.member,
        kind=trajectory.task.kind,
        success=trajectory.success,
        stop_reason=str(trajectory.stop_reason.value),
        steps=len(trajectory.transitions),
        score=trajectory.total_reward,
        commands=hashlib.sha256(commands.encode("utf-8", "surrogatepass")).hexdigest()[:16],
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _source_sha256() -> str:
    """Return a SHA-256 over the names and contents of this package's own files, which a version number may not tell."""
    root = Path(__file__).parents[1]
    return fingerprint_of(root, (path.relative_to(root).as_posix() for path in root.rglob("*.py")))
