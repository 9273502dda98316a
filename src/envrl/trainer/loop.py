"""A run from its first file to its last: warm start, then update after update, evaluations and checkpoints between.

`train` reads top to bottom; everything that a resumed run needs is in `RunState` (`envrl.trainer.state`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from envrl.config.schema import Config
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.pool import Worlds
from envrl.errors import Interrupted, RunError
from envrl.eval.kept import kept_by_run
from envrl.eval.language import figures_of_english
from envrl.eval.record import action_rates
from envrl.eval.split import env_maker, evaluate_split, form_of, spread, training_settings, wording_of
from envrl.files import JsonLines
from envrl.models.copies import refresh, sampling_copy
from envrl.models.out_of_memory import is_out_of_memory
from envrl.models.runtime import give_back_memory, peak_memory, prepare_torch, reset_peak_memory
from envrl.progress import Reporter
from envrl.rollout.crowd import Crowd
from envrl.rollout.runner import play_model
from envrl.rollout.seats import Clock
from envrl.trainer.batch import build_batch, draw_episodes, grouped, whole_groups
from envrl.trainer.checkpoint import latest_checkpoint, settle_checkpoints
from envrl.trainer.footprint import predicted_memory
from envrl.trainer.idle import IdleUpdates
from envrl.trainer.shared_start import shared_evaluations
from envrl.trainer.signals import StopRequest, stop_on_signals
from envrl.trainer.start import check_inputs, held_run, new_config, resumed_config
from envrl.trainer.state import RunState, fresh_state, is_finished, read_state, write_state
from envrl.trainer.steps import Optimization
from envrl.trainer.trajectories import write_trajectories
from envrl.trainer.warm_start import FOLDER, Hooks, warm_start
from envrl.types import Row, StopReason, Trajectory, TrajectoryGroup, episodes_of


def train(config: Config, run: Path | str, resume: bool = False, reporter: Reporter | None = None) -> Path:
    """Train a recipe into the directory `run`, or go on with it bit for bit; return the directory.

    Raises `UserError` (bad configuration, data or directory), `RunError` (disk full, diverged) and `Interrupted` once
    the checkpoint is saved.
    """
    run, reporter = Path(run), reporter or Reporter()
    config = resumed_config(run, config) if resume else new_config(config)
    make_env = env_maker(config)
    prepare_torch(config.train.threads)
    with reporter.phase("checking the recipe"):
        check_inputs(config, make_env, warm_start=not (run / FOLDER).exists())
    with held_run(run, config, make_env, resume), stop_on_signals() as stop:
        try:
            return Run(config, run, make_env, reporter, stop).go()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"memory ran out, and not where less could be tried; the last checkpoint is kept: 'envrl doctor "
                f"{run / 'config.toml'}' says what the run needs and what to lower ({str(error).splitlines()[0]})"
            ) from error


class Run:
    """One process's work on a run directory."""

    def __init__(self, config: Config, folder: Path, make_env: Worlds, reporter: Reporter, stop: StopRequest) -> None:
        self.config, self.folder, self.make_env, self.reporter, self.stop = config, folder, make_env, reporter, stop
        self.checkpoints = folder / "checkpoints"
        with opened(make_env()) as env:
            self.tasks = listed_tasks(env, config.env.split, config.env.name)
        self.crowd = Crowd(reporter.say)
        self.idle = IdleUpdates(config, reporter.say)

    def go(self) -> Path:
        """Bring the run to its last update."""
        latest = latest_checkpoint(self.checkpoints)
        settle_checkpoints(self.checkpoints, self.config.checkpoint.keep)
        if latest is not None:  # it may have been caught while it was replaced, and has its name back now
            latest = latest.with_name(latest.name.removeprefix(".old-"))
        if latest is not None and is_finished(latest, self.config.train.updates):
            self.reporter.say(f"{self.folder} is finished: {self.config.train.updates} updates")
            return self.folder
        if latest is None:
            with self.reporter.phase("warm start", 1) as phase:
                hooks = Hooks(
                    self.stop.poll,
                    lambda done, total, figures: phase.show(done, _few(figures), total),
                    self.reporter,
                )
                model = warm_start(self.config, self.folder, self.make_env, hooks)
            state = fresh_state(model, self.config)
        else:
            with self.reporter.phase("loading the checkpoint"):
                state = read_state(latest, self.config)
        self.metrics, self.evals = JsonLines(self.folder / "metrics.jsonl"), JsonLines(self.folder / "eval.jsonl")
        self.metrics.truncate(state.metrics_offset)
        self.evals.truncate(state.eval_offset)
        self.optimization = Optimization(
            self.config, state.model, state.optimizer, self.folder, self.stop.poll, self.reporter.say
        )
        self.optimization.guard.skips = state.skips
        self.wording = wording_of(state.model, form_of(self.config))
        self.sampling = sampling_copy(state.model, self.config.rollout.precision)
        try:
            self._updates(state)
        except Interrupted:
            path = self._save(state)
            raise Interrupted(f"interrupted; saved {path}: go on with --resume") from None
        except KeyboardInterrupt:  # a second Ctrl-C may come inside a step: what is in memory is nobody's state
            raise Interrupted(f"interrupted; {self.folder} goes on from its last checkpoint with --resume") from None
        finally:
            self.metrics.close()
            self.evals.close()
        return self.folder

    def _updates(self, state: RunState) -> None:
        updates = self.config.train.updates
        with self.reporter.phase("update", updates, state.update) as phase:
            while True:
                if not state.evaluated:
                    if state.update:  # an evaluation may take longer than many updates, and may not survive
                        self._save(state)
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
        episodes = draw_episodes(self.tasks, config.seed, number, config.rollout.tasks, config.rollout.group_size)
        settings = training_settings(config)
        reset_peak_memory(state.model.device)
        refresh(self.sampling, state.model)

        def play(part: range) -> list[Trajectory]:
            tasks, members = zip(*(episodes[i] for i in part), strict=True)
            return play_model(
                self.sampling,
                self.wording,
                self.make_env,
                tasks,
                members,
                settings,
                seed=config.seed,
                update=number,
                clock=clock,
                poll=self.stop.poll,
                watch=lambda done: phase.show(part.start + done),
            )

        with self.reporter.phase("playing", len(episodes), unit="episodes") as phase:
            drawn = self.crowd.play(len(episodes), play)
        set_aside = self.make_env.vector().set_aside
        groups = whole_groups(grouped(drawn, config.rollout.group_size), config.env.name, set_aside)
        trajectories = episodes_of(groups)
        played = time.perf_counter()
        batch = build_batch(groups, config, self.wording, number)
        self.idle.observe(number, groups, batch.figures)
        built = time.perf_counter()
        with self.reporter.phase("learning"):
            figures = self.optimization.step(batch.rows, batch.weights, number)
        give_back_memory()
        if number % config.train.trajectories_every == 0 and config.train.trajectories:
            shown = episodes_of(groups[: config.train.trajectories])
            with self.reporter.phase("writing episodes down"):
                name = f"update-{number:06d}"
                write_trajectories(self.folder, name, number, shown, state.model, self.wording, config)
        record = self._record(state, number, groups) | batch.figures | figures
        record["train/token_mismatches"] = clock.mismatches
        record["env/set_aside"] = len(drawn) - len(trajectories)
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
            **({"workers_replaced": clock.replaced} if self.make_env.workers else {}),
        }
        record["memory"] = self._memory(state, trajectories, batch.rows)
        self.metrics.append(record)
        state.update, state.metrics_offset, state.skips = number, self.metrics.offset, self.optimization.guard.skips
        state.evaluated = not self._evaluation_due(number)
        return _few(record)

    def _memory(self, state: RunState, played: list[Trajectory], rows: list[Row]) -> dict[str, int]:
        """Return the update's peak in bytes, the predicted one, and how much of the batch was held at once."""
        episodes = self.config.rollout.tasks * self.config.rollout.group_size
        at_once = min(self.crowd.limit or episodes, episodes)
        budget = self.optimization.guard.budget.limit or self.config.train.micro_batch_tokens
        return {
            "peak": peak_memory(state.model.device),
            "predicted": predicted_memory(self.config, state.model, played, rows, budget, at_once),
            "micro_batch_tokens": budget,
            "episodes_at_once": at_once,
        }

    def _record(self, state: RunState, number: int, groups: list[TrajectoryGroup]) -> dict[str, Any]:
        trajectories = episodes_of(groups)
        steps = [step for trajectory in trajectories for step in trajectory.transitions]
        tokens = sum(len(segment.token_ids) for trajectory in trajectories for segment in trajectory.segments)
        state.env_steps += len(steps)
        state.tokens += tokens
        count = len(trajectories)
        return {
            "update": number,
            "env_steps": state.env_steps,
            "episodes": number * self.config.rollout.tasks * self.config.rollout.group_size,
            "tokens": tokens,
            "total_tokens": state.tokens,
            "train/steps": len(steps),
            "train/success_rate": sum(t.success for t in trajectories) / count,
            "train/return": float(np.mean([t.total_reward for t in trajectories])),
            "train/turns": len(steps) / count,
            "train/groups_used": sum(group.differs for group in groups) / len(groups),
            **{f"train/{name}": rate for name, rate in action_rates(trajectories).items()},
            "train/context_full": sum(t.stop_reason is StopReason.CONTEXT for t in trajectories) / count,
            "train/segments": sum(len(t.segments) for t in trajectories) / count,
            "train/retokenized_rate": sum(self.wording.rewrites(s.action) for s in steps) / max(len(steps), 1),
        }

    def _evaluation_due(self, update: int) -> bool:
        every = self.config.eval.every
        return update in (0, self.config.train.updates) or (every > 0 and update % every == 0)

    def _evaluate(self, state: RunState) -> None:
        self.evals.truncate(state.eval_offset)
        refresh(self.sampling, state.model)
        last = state.update in (0, self.config.train.updates)
        known = shared_evaluations(self.config) if state.update == 0 else {}
        english = dict[str, float]()
        if set(self.config.eval.split) - set(known):
            english = figures_of_english(state.model, self.config, self.reporter)
        for split in self.config.eval.split:
            if split in known:
                self.evals.append(known[split], sync=True)
                self._say_success(known[split], ", measured by the run that made the warm start")
                continue
            episodes = self.config.eval.final if last else self.config.eval.episodes
            name = f"{state.update:06d}-{split}"
            about = {"update": state.update, "split": split}
            lists = self.config.rollout.show_admissible
            with kept_by_run(self.folder / "eval" / f"{name}.jsonl", about, lists=lists) as kept:
                record, played = evaluate_split(
                    *(state.model, self.make_env, split, self.config),
                    episodes=episodes,
                    sampling=self.sampling,
                    poll=self.stop.poll,
                    crowd=self.crowd,
                    reporter=self.reporter,
                    kept=kept,
                    whole_batches=True,
                )
            self.evals.append({"stage": "rl", "update": state.update, **record, **english}, sync=True)
            if last and self.config.train.trajectories:
                shown = spread(played, 2 * self.config.train.trajectories, lambda trajectory: trajectory.task.kind)
                with self.reporter.phase("writing episodes down"):
                    write_trajectories(
                        self.folder, f"eval-{name}", state.update, shown, state.model, self.wording, self.config
                    )
            self._say_success({"update": state.update, **record})
        state.eval_offset = self.evals.offset

    def _say_success(self, record: dict[str, Any], how: str = "") -> None:
        low, high = record["ci95"]
        self.reporter.say(
            f"update {record['update']}, {record['split']}: success {record['success_rate']:.1%} "
            f"(95 % interval {low:.1%} to {high:.1%}, {record['episodes']} games{how})"
        )

    def _save(self, state: RunState) -> Path:
        self.metrics.sync()
        return write_state(self.checkpoints, state, self.config.checkpoint.keep)


def _few(record: dict[str, Any]) -> dict[str, float]:
    """Return the figures that fit on a progress line: success, entropy, and the losses beside the policy's."""
    wanted = {
        "train/success_rate": "success",
        "entropy": "entropy",
        "loss/imitation": "loss",
        "held_out/imitation": "held-out",
        "held_out/action_accuracy": "actions right",
    }
    losses = {key: key.removeprefix("loss/") for key in record if key.startswith("loss/") and key != "loss/policy"}
    return {short: record[name] for name, short in (losses | wanted).items() if name in record}
