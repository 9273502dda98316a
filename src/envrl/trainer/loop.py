"""The training loop: warm start, then updates, with evaluations and checkpoints between them.

Start reading at `train`. `RunState` (`envrl.trainer.state`) holds everything that a resumed run needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envrl import ranks
from envrl.batches.auxiliary import Predict
from envrl.batches.batch import Asks, UpdateBatch, build_batch
from envrl.batches.selection import Memory
from envrl.build import env_maker, form_of, policy_of, renderer_of
from envrl.config.check import check_processes
from envrl.config.schema import Config
from envrl.engine.checkpoint import Due, latest_checkpoint, settle_checkpoints
from envrl.engine.protocol import Engine
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.pool import Worlds
from envrl.errors import Interrupted, RunError
from envrl.eval.trajectories import write_shown
from envrl.files import JsonLines, NoLines
from envrl.imitation.warm_start import FOLDER, Hooks, warm_start
from envrl.memories.remembering import Remembering
from envrl.models.load import LanguageModel
from envrl.models.out_of_memory import is_out_of_memory
from envrl.models.runtime import give_back_memory, prepare_torch, reset_peak_memory
from envrl.progress import Reporter
from envrl.registry import find
from envrl.rollout.predict import predict_targets
from envrl.rollout.splitter import BatchSplitter
from envrl.trainer.ahead import PlayAhead, PlayNow
from envrl.trainer.evaluations import Evaluations
from envrl.trainer.idle import IdleUpdates
from envrl.trainer.record import Laps, UpdateLog, progress_figures
from envrl.trainer.regularizing import Regularizers
from envrl.trainer.replaying import Replaying
from envrl.trainer.rollouts import Rollouts
from envrl.trainer.signals import StopRequest, stop_on_signals
from envrl.trainer.start import check_alike, check_inputs, held_run, new_config, resumed_config
from envrl.trainer.state import RunState, fresh_state, is_finished, read_state, write_state
from envrl.trainer.tasks import Tasks
from envrl.types import TrajectoryGroup


def train(config: Config, run: Path | str, resume: bool = False, reporter: Reporter | None = None) -> Path:
    """Train a recipe into the directory `run`, or resume it bit for bit; return the directory.

    Raises `UserError` (bad configuration, data or directory), `RunError` (disk full, diverged), and `Interrupted` after
    the checkpoint is saved.
    """
    check_processes(config, ranks.expected())
    run, reporter = Path(run), reporter or Reporter(silent=not ranks.is_first())
    with ranks.joined(config.train.device, alone=config.train.engine == "sharded"), warnings.catch_warnings():
        if not ranks.is_first():
            warnings.simplefilter("ignore")  # the first says them
        return _train(config, run, resume, reporter)


def _train(config: Config, run: Path, resume: bool, reporter: Reporter) -> Path:
    make_env = env_maker(config)
    check_alike(config, make_env)
    config = ranks.gather(resumed_config(run, config) if resume else new_config(config))[0]
    prepare_torch(config.train.threads)
    with reporter.phase("checking the recipe"):
        check_inputs(config, make_env, warm_start=not (run / FOLDER).exists())
    with held_run(run, config, make_env, resume), stop_on_signals() as stop:
        try:
            return Run(config, run, make_env, reporter, stop).finish()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"memory ran out, and not where less could be tried; the last checkpoint is kept: 'envrl doctor "
                f"{run / 'config.toml'}' says what the run needs and what to lower ({str(error).splitlines()[0]})"
            ) from error


class Run:
    """The work of one process on a run directory."""

    def __init__(self, config: Config, folder: Path, make_env: Worlds, reporter: Reporter, stop: StopRequest) -> None:
        self.config, self.folder, self.make_env, self.reporter, self.stop = config, folder, make_env, reporter, stop
        self.checkpoints = folder / "checkpoints"
        with opened(make_env()) as env:
            self.tasks = Tasks(listed_tasks(env, config.env.split, config.env.name), config)
        self.replay, self.memory, self.regularizers = Replaying(config), Remembering(config), Regularizers(config)
        self.selection = Memory()
        self.splitter = BatchSplitter(reporter.say)
        self.idle = IdleUpdates(config, reporter.say)

    def finish(self) -> Path:
        """Train up to the last update."""
        latest = ranks.of_first(self._settled)
        if latest is not None and is_finished(latest, self.config.train.updates):
            self.reporter.say(f"{self.folder} is finished: {self.config.train.updates} updates")
            return self.folder
        if latest is None:
            state = fresh_state(self._start(), self.config)
            self.replay.begin(state.model.codec.tokenizer.get_vocab())
            self.memory.begin()
            state.components = self._components()
        else:
            with self.reporter.phase("loading the checkpoint"):
                state = read_state(latest, self.config)
        self._make_ready(state)
        if latest is not None:
            self.replay.load(state.components["replay"])
            self.regularizers.load(state.components.get("regularizers", {}))
            self.memory.load(state.components.get("memory"))
            self.selection.load(state.components.get("auxiliary"))
            self.player.load(state.components)
        try:
            try:
                self._updates(state)
            except Interrupted:
                raise Interrupted(f"interrupted; saved {self._save(state)}: go on with --resume") from None
        except KeyboardInterrupt:  # a second Ctrl-C may come inside a step, so the state in memory is not valid
            raise Interrupted(f"interrupted; {self.folder} goes on from its last checkpoint with --resume") from None
        finally:
            self.player.close()
            self.metrics.close()
            self.evals.close()
        return self.folder

    def _settled(self) -> Path | None:
        """Finish what a killed writer began; return the latest checkpoint."""
        latest = latest_checkpoint(self.checkpoints)
        settle_checkpoints(self.checkpoints, self.config.checkpoint.keep)
        # It may have been caught while it was replaced, and has its name back now.
        return latest and latest.with_name(latest.name.removeprefix(".old-"))

    def _start(self) -> LanguageModel:
        with self.reporter.phase("warm start", 1) as phase:
            hooks = Hooks(
                self.stop.poll,
                lambda done, total, figures: phase.show(done, progress_figures(figures), total),
                self.reporter,
            )
            return warm_start(self.config, self.folder, self.make_env, hooks)

    def _make_ready(self, state: RunState) -> None:
        """Make what an update needs, and take back what was written behind the state."""
        # Of several processes none leaves the others alone: they ask each other between two updates (`_updates`).
        config, poll = self.config, self.stop.poll if ranks.count() == 1 else lambda: None
        self.metrics, self.evals = self._lines("metrics.jsonl"), self._lines("eval.jsonl")
        self.metrics.truncate(state.metrics_offset)
        self.evals.truncate(state.eval_offset)
        self.renderer = renderer_of(state.model, form_of(config))
        self.policy = policy_of(state.model, config, self.renderer)
        shared = (self.policy, self.splitter, poll, self.reporter)
        rollouts = Rollouts(config, self.make_env, self.tasks, *shared, self.memory)
        self.evaluations = Evaluations(
            config, self.folder, self.make_env, self.renderer, *shared, self.evals, self.memory
        )
        make_engine = find("engine", config.train.engine).target
        made_with = (config, state.model, state.optimizer, self.folder, poll, self.reporter.say, self.regularizers)
        self.engine: Engine = make_engine(*made_with, **config.settings("engine"))
        self.engine.skips = state.skips
        asked = (self.engine.values, self.engine.logprobs, self.engine.reference_logprobs)
        self.asks = Asks(*asked, self._predict(state.model), self.engine.teacher_logprobs, self.selection)
        self.player: PlayNow | PlayAhead = PlayNow(rollouts, self.engine)
        if config.rollout.ahead:
            self.player = PlayAhead(config, rollouts, self.engine, poll, self.reporter)
        self.log = UpdateLog(config, self.metrics, self.renderer, self.splitter, self.engine, self.make_env.workers)

    def _predict(self, model: LanguageModel) -> Predict:
        return lambda pairs: ranks.of_first(lambda: predict_targets(model, pairs, self.renderer.stops))

    def _updates(self, state: RunState) -> None:
        updates, due = self.config.train.updates, Due(self.config.checkpoint.every, self.config.checkpoint.minutes)
        with self.reporter.phase("update", updates, state.update) as phase:
            while True:
                if not state.evaluated:
                    if state.update:  # an evaluation may take long, and be killed
                        self._save(state)
                    self._evaluate(state)
                    if state.update == 0:
                        self._save(state)
                if state.update and (due(state.update) or state.update == updates):
                    self._save(state)
                if state.update >= updates:
                    return
                if ranks.count() > 1:
                    ranks.agree(self.stop.poll)
                phase.show(state.update + 1, self._update(state))

    def _update(self, state: RunState) -> dict[str, float]:
        """Run update `state.update + 1`: play, mix in replayed groups, make rows, learn, log."""
        number, laps = state.update + 1, Laps()
        reset_peak_memory(state.model.device)
        with laps.of("rollout"):
            played = self.player.play(number, laps)
        with laps.of("rows"):
            groups = self.replay.mix(played.admitted, number)
            batch = self._rows(groups, number)
        with laps.of("update"):  # before the step: what the policy that played them thought
            if ranks.is_first():
                write_shown(self.folder, number, played.groups, state.model, self.renderer, self.config, self.reporter)
        with laps.of("update"), self.reporter.phase("learning"):
            figures = self._learn(batch, number)
        record = self.log.write(state, number, played, batch, figures, laps)
        state.update, state.metrics_offset, state.skips = number, self.metrics.offset, self.engine.skips
        state.evaluated, state.components = not self.evaluations.due(number), self._components()
        return progress_figures(record)

    def _rows(self, groups: Sequence[TrajectoryGroup], update: int) -> UpdateBatch:
        """Return the rows of an update, none for an engine that takes no steps; say where nothing is learned."""
        if not self.config.learns:
            return UpdateBatch([], {}, {})
        batch = build_batch(groups, self.config, self.renderer, update, self.asks)
        self.idle.observe(update, groups, batch.figures)
        return batch

    def _learn(self, batch: UpdateBatch, update: int) -> dict[str, float]:
        """Take the optimiser steps of an update; return its figures."""
        told = self.replay.figures() | self.regularizers.figures()
        figures = told | self.engine.step(batch.rows, batch.weights, update)
        self.regularizers.observe(figures)
        give_back_memory()
        return figures

    def _components(self) -> dict[str, Any]:
        parts = {"replay": self.replay, "auxiliary": self.selection, "regularizers": self.regularizers}
        return {name: part.state() for name, part in {**parts, "memory": self.memory}.items()}

    def _evaluate(self, state: RunState) -> None:
        self.evals.truncate(state.eval_offset)
        self.engine.publish(self.policy.sampler, state.update)
        self.evaluations.run(state.model, state.update)
        state.eval_offset, state.evaluated = self.evals.offset, True

    def _save(self, state: RunState) -> Path:
        self.metrics.sync()
        state.components |= self.player.state(state.update)
        moments = self.engine.state()
        if ranks.is_first():
            write_state(self.checkpoints, state, self.config.checkpoint.keep, moments)
        return self.checkpoints / f"step-{state.update:06d}"

    def _lines(self, name: str) -> JsonLines:
        return JsonLines(self.folder / name) if ranks.is_first() else NoLines()
