"""A run from its first file to its last: warm start, then update after update, evaluations and checkpoints between.

`train` reads top to bottom; everything that a resumed run needs is in `RunState`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from envrl.config.load import config_differences, dump_config, load_recipe
from envrl.config.schema import Config
from envrl.envs.protocol import TextEnv
from envrl.envs.registry import make
from envrl.errors import Interrupted, UserError
from envrl.eval.split import evaluate_split, play_settings
from envrl.models.load import LanguageModel, check_model_folder, find_device, load_model, save_model
from envrl.models.runtime import prepare_torch, usable_threads
from envrl.objective.advantage import ESTIMATORS
from envrl.objective.policy import TOKEN_LOSSES
from envrl.rollout.runner import Clock, play_model
from envrl.trainer.batch import aux_weights, build_batch, draw_tasks
from envrl.trainer.checkpoint import (
    clean_checkpoints,
    latest_checkpoint,
    load_state,
    save_checkpoint,
    save_state,
    verify_checkpoint,
)
from envrl.trainer.files import JsonLines, create_run, lock_run
from envrl.trainer.optimizer import Optimizer, adamw
from envrl.trainer.progress import Reporter
from envrl.trainer.signals import StopRequest, stop_on_signals
from envrl.trainer.steps import Optimization
from envrl.trainer.trajectories import write_trajectories
from envrl.trainer.warm_start import Hooks, warm_start
from envrl.types import Trajectory


@dataclass(slots=True)
class RunState:
    """What a run is made of between two updates."""

    model: LanguageModel
    optimizer: Optimizer
    update: int = 0
    evaluated: bool = False
    skips: int = 0
    env_steps: int = 0
    tokens: int = 0
    metrics_offset: int = 0
    eval_offset: int = 0

    COUNTERS = ("update", "evaluated", "skips", "env_steps", "tokens", "metrics_offset", "eval_offset")


def train(config: Config, run: Path | str, resume: bool = False, reporter: Reporter | None = None) -> Path:
    """Train a recipe into the directory `run`, or go on with it bit for bit; return the directory.

    Raises `UserError` (bad configuration, data or directory), `RunError` (disk full, diverged) and `Interrupted` once
    the checkpoint is saved.
    """
    run, reporter = Path(run), reporter or Reporter()
    check_config(config)
    make_env = _env_maker(config)
    if resume:
        config = open_run(run, config)
    elif not config.train.threads:
        config = replace(config, train=replace(config.train, threads=usable_threads()))
    prepare_torch(config.train.threads)
    for split in (config.env.split, *config.eval.split):
        make_env().tasks(split)
    if not resume:
        create_run(run, dump_config(config))
    with lock_run(run), stop_on_signals() as stop:
        return Run(config, run, make_env, reporter, stop).go()


class Run:
    """One process's work on a run directory."""

    def __init__(
        self, config: Config, folder: Path, make_env: Callable[[], TextEnv], reporter: Reporter, stop: StopRequest
    ) -> None:
        self.config, self.folder, self.make_env, self.reporter, self.stop = config, folder, make_env, reporter, stop
        self.checkpoints = folder / "checkpoints"

    def go(self) -> Path:
        """Bring the run to its last update."""
        latest = latest_checkpoint(self.checkpoints)
        if latest is not None and self._finished(latest):
            self.reporter.say(f"{self.folder} is finished: {self.config.train.updates} updates")
            return self.folder
        clean_checkpoints(self.checkpoints)
        if latest is None:
            with self.reporter.phase("warm start", 1) as phase:
                hooks = Hooks(
                    self.stop.poll,
                    lambda done, total, figures: phase.show(done, _few(figures), total),
                    self.reporter.say,
                )
                model = warm_start(self.config, self.folder, self.make_env, hooks)
            state = self._start(model)
        else:
            state = self._restore(latest)
        self.metrics, self.evals = JsonLines(self.folder / "metrics.jsonl"), JsonLines(self.folder / "eval.jsonl")
        self.metrics.truncate(state.metrics_offset)
        self.evals.truncate(state.eval_offset)
        self.optimization = Optimization(
            self.config, state.model, state.optimizer, self.folder, self.stop.poll, self.reporter.say
        )
        self.optimization.guard.skips = state.skips
        try:
            self._updates(state)
        except Interrupted:
            path = self._save(state)
            raise Interrupted(f"interrupted; saved {path}: go on with --resume") from None
        except KeyboardInterrupt:  # a second Ctrl-C may come inside a step: what is in memory is nobody's state
            raise Interrupted(f"interrupted; {self.folder} goes on from its last checkpoint with --resume") from None
        return self.folder

    def _updates(self, state: RunState) -> None:
        updates = self.config.train.updates
        with self.reporter.phase("update", updates, state.update) as phase:
            while True:
                if not state.evaluated:
                    self._evaluate(state)
                    state.evaluated = True
                    if state.update == 0:
                        self._save(state)
                if state.update and (state.update % self.config.checkpoint.every == 0 or state.update == updates):
                    self._save(state)
                if state.update >= updates:
                    return
                phase.show(state.update + 1, self._update(state))

    def _update(self, state: RunState) -> dict[str, float]:
        """Play, build rows, optimise, log: update number `state.update + 1`."""
        config, number = self.config, state.update + 1
        began, clock = time.perf_counter(), Clock()
        tasks = draw_tasks(self._train_tasks(), config.seed, number, config.rollout.tasks)
        members = list(range(config.rollout.group_size))
        settings = replace(play_settings(config, config.rollout.temperature), reward_scale=config.rollout.reward_scale)
        trajectories = play_model(
            state.model,
            self.make_env,
            [task for task in tasks for _ in members],
            [member for _ in tasks for member in members],
            settings,
            seed=config.seed,
            update=number,
            clock=clock,
            poll=self.stop.poll,
        )
        played = time.perf_counter()
        batch = build_batch(trajectories, config, state.model.codec, number)
        built = time.perf_counter()
        figures = self.optimization.step(
            batch.rows, aux_weights(config.objective, number, config.train.updates), number
        )
        if number % config.train.trajectories_every == 0 and config.train.trajectories:
            shown = trajectories[: config.train.trajectories * config.rollout.group_size]
            write_trajectories(self.folder, f"update-{number:06d}", number, shown, state.model, config)
        record = self._record(state, number, trajectories) | batch.figures | figures
        done = time.perf_counter()
        record["seconds"] = {
            "rollout": played - began - clock.env,
            "env": clock.env,
            "rows": built - played,
            "update": done - built,
            "total": done - began,
        }
        record["rate"] = {
            "env_steps": record["train/steps"] / (done - began),
            "tokens": record["tokens"] / (done - began),
        }
        self.metrics.append(record)
        state.update, state.metrics_offset, state.skips = number, self.metrics.offset, self.optimization.guard.skips
        state.evaluated = not self._evaluation_due(number)
        return _few(record)

    def _record(self, state: RunState, number: int, trajectories: list[Trajectory]) -> dict[str, Any]:
        steps = [step for trajectory in trajectories for step in trajectory.transitions]
        tokens = sum(len(segment.token_ids) for trajectory in trajectories for segment in trajectory.segments)
        state.env_steps += len(steps)
        state.tokens += tokens
        count = len(trajectories)
        size = self.config.rollout.group_size
        returns = np.array([t.total_reward for t in trajectories]).reshape(-1, size)
        return {
            "update": number,
            "env_steps": state.env_steps,
            "episodes": number * count,
            "tokens": tokens,
            "total_tokens": state.tokens,
            "train/steps": len(steps),
            "train/success_rate": sum(t.success for t in trajectories) / count,
            "train/return": float(returns.mean()),
            "train/turns": len(steps) / count,
            "train/groups_used": float((returns.max(1) != returns.min(1)).mean()),
            "train/valid_action_rate": sum(s.action.well_formed for s in steps) / len(steps),
            "train/admissible_action_rate": sum(s.admissible for s in steps) / len(steps),
            "train/imagined_observation_rate": sum(s.action.imagined for s in steps) / len(steps),
            "train/context_full": sum(t.stop_reason == "context" for t in trajectories) / count,
        }

    def _train_tasks(self) -> Any:
        return self.make_env().tasks(self.config.env.split)

    def _evaluation_due(self, update: int) -> bool:
        every = self.config.eval.every
        return update in (0, self.config.train.updates) or (every > 0 and update % every == 0)

    def _evaluate(self, state: RunState) -> None:
        self.evals.truncate(state.eval_offset)
        last = state.update in (0, self.config.train.updates)
        for split in self.config.eval.split:
            episodes = 0 if last else self.config.eval.episodes
            record, played = evaluate_split(
                state.model, self.make_env, split, self.config, episodes=episodes, poll=self.stop.poll
            )
            self.evals.append({"stage": "rl", "update": state.update, **record}, sync=True)
            if last and self.config.train.trajectories:
                shown = played[: 2 * self.config.train.trajectories]
                write_trajectories(
                    self.folder, f"eval-{state.update:06d}-{split}", state.update, shown, state.model, self.config
                )
            low, high = record["ci95"]
            self.reporter.say(
                f"update {state.update}, {split}: success {record['success_rate']:.1%} "
                f"(95 % interval {low:.1%} to {high:.1%}, {record['episodes']} games)"
            )
        state.eval_offset = self.evals.offset

    def _finished(self, latest: Path) -> bool:
        _, meta = load_state(latest / "state")
        return meta["update"] >= self.config.train.updates and meta["evaluated"]

    def _start(self, model: LanguageModel) -> RunState:
        train = self.config.train
        return RunState(model, adamw(model, train.learning_rate, train.weight_decay))

    def _restore(self, folder: Path) -> RunState:
        state = self._start(load_model(folder, self.config.train.device))
        tensors, meta = load_state(folder / "state")
        state.optimizer.restore(tensors)
        for name in RunState.COUNTERS:
            setattr(state, name, meta[name])
        return state

    def _save(self, state: RunState) -> Path:
        def write(folder: Path) -> None:
            save_model(state.model, folder)
            meta = {name: getattr(state, name) for name in RunState.COUNTERS}
            save_state(folder / "state", state.optimizer.tensors(), meta)

        self.metrics.sync()
        return save_checkpoint(self.checkpoints, f"step-{state.update:06d}", write, self.config.checkpoint.keep)


def _few(record: dict[str, Any]) -> dict[str, float]:
    """Return the figures that fit on a progress line."""
    wanted = {
        "train/success_rate": "success",
        "entropy": "entropy",
        "loss/state": "state",
        "loss/inverse": "inverse",
        "loss/imitation": "loss",
        "held_out/imitation": "held-out",
        "held_out/action_accuracy": "actions right",
    }
    return {short: record[name] for name, short in wanted.items() if name in record}


def _env_maker(config: Config) -> Callable[[], TextEnv]:
    options = {"data": config.env.data} if config.env.data else {}
    return lambda: make(config.env.name, **options)


def check_config(config: Config) -> None:
    """Refuse what only the program knows to be wrong: an unknown estimator or loss, a device that is not there."""
    _ = ESTIMATORS[config.objective.estimator], TOKEN_LOSSES[config.objective.loss]
    find_device(config.train.device)
    if config.warm_start.path:
        verify_checkpoint(Path(config.warm_start.path))
    elif config.model.path:
        check_model_folder(config.model.path)


def open_run(run: Path, config: Config) -> Config:
    """Return the configuration that an existing run goes on with; raises `UserError` where it is another run's."""
    file = run / "config.toml"
    if not file.is_file():
        raise UserError(f"there is no run in '{run}' to resume; start it without --resume")
    stored = load_recipe(str(file), ())
    if not config.train.threads:  # whatever this machine has, the run keeps the number that it was started with
        config = replace(config, train=replace(config.train, threads=stored.train.threads))
    changed = config_differences(stored, config)
    fixed = (
        stored.objective.schedule == "constant"
        or stored.objective.schedule_updates > 0
        or not aux_weights(stored.objective, 1, 1)
    )
    if changed == ["train.updates"] and fixed and config.train.updates >= stored.train.updates:
        return config
    if changed == ["train.updates"] and config.train.updates < stored.train.updates:
        raise UserError(
            f"'{run}' was started with train.updates = {stored.train.updates}: a run can get more updates, not fewer"
        )
    if changed == ["train.updates"]:
        raise UserError(
            f"'{run}' was started with train.updates = {stored.train.updates}, over which the weights of its auxiliary "
            "losses fall; only more updates with objective.schedule_updates set, or a constant schedule, can be added"
        )
    if changed:
        raise UserError(
            f"'{run}' was started with another configuration ({', '.join(changed)} differ); use another --run"
        )
    return config
