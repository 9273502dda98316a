"""What the training loop works with: the parts of a run, made ready from its configuration and its last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envrl import ranks
from envrl.batches.auxiliary import Predict
from envrl.batches.batch import Asks, UpdateBatch, build_batch
from envrl.batches.selection import Memory
from envrl.build import form_of, policy_of, renderer_of
from envrl.config.schema import Config
from envrl.engine.checkpoint import latest_checkpoint, settle_checkpoints
from envrl.engine.protocol import Engine
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.pool import Worlds
from envrl.files import JsonLines, NoLines
from envrl.imitation.shared_start import learned_in_warm_start
from envrl.imitation.warm_start import Hooks, warm_start
from envrl.memories.remembering import Remembering
from envrl.models.load import LanguageModel
from envrl.models.runtime import give_back_memory
from envrl.progress import Reporter
from envrl.registry import find
from envrl.rollout.predict import predict_targets
from envrl.rollout.splitter import BatchSplitter
from envrl.trainer.ahead import PlayAhead, PlayNow
from envrl.trainer.evaluations import Evaluations
from envrl.trainer.idle import IdleUpdates
from envrl.trainer.record import UpdateLog, progress_figures
from envrl.trainer.regularizing import Regularizers
from envrl.trainer.replaying import Replaying
from envrl.trainer.rollouts import Rollouts
from envrl.trainer.signals import StopRequest
from envrl.trainer.state import RunState, fresh_state, is_finished, read_state, write_state
from envrl.trainer.tasks import Tasks
from envrl.types import TrajectoryGroup


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

    def begin(self) -> RunState | None:
        """Make the parts ready; return the state of the last checkpoint, or a new one; None if the run is finished."""
        latest = ranks.of_first(self._settled)
        if latest is not None and is_finished(latest, self.config):
            self.reporter.say(f"{self.folder} is finished: {int(latest.name.removeprefix('step-'))} updates")
            return None
        if latest is None:
            state = fresh_state(self._start(), self.config)
            self.replay.begin(state.model.codec.tokenizer.get_vocab())
            self.memory.begin()
            state.components = self.components()
            if self.config.train.token_budget:
                state.learned = ranks.of_first(lambda: learned_in_warm_start(self.config, self.folder))
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
        return state

    def rows(self, groups: Sequence[TrajectoryGroup], update: int) -> UpdateBatch:
        """Return the rows of an update, none for an engine that takes no steps; say where nothing is learned."""
        if not self.config.learns:
            return UpdateBatch([], {}, {})
        batch = build_batch(groups, self.config, self.renderer, update, self.asks)
        self.idle.observe(update, groups, batch.figures)
        return batch

    def learn(self, batch: UpdateBatch, update: int) -> dict[str, float]:
        """Take the optimiser steps of an update; return its figures."""
        told = self.replay.figures() | self.regularizers.figures()
        figures = told | self.engine.step(batch.rows, batch.weights, update)
        self.regularizers.observe(figures)
        give_back_memory()
        return figures

    def components(self) -> dict[str, Any]:
        """Return the state of what must survive a checkpoint, by name."""
        parts = {"replay": self.replay, "auxiliary": self.selection, "regularizers": self.regularizers}
        return {name: part.state() for name, part in {**parts, "memory": self.memory}.items()}

    def evaluate(self, state: RunState, over: bool) -> None:
        """Evaluate the policy, `over` if for the last time, and keep where its lines end."""
        self.evals.truncate(state.eval_offset)
        self.engine.publish(self.policy.sampler, state.update)
        self.evaluations.run(state.model, state.update, over)
        state.eval_offset, state.evaluated = self.evals.offset, True

    def save(self, state: RunState) -> Path:
        """Write a checkpoint; return its folder."""
        self.metrics.sync()
        state.components |= self.player.state(state.update)
        moments = self.engine.state()
        if ranks.is_first():
            write_state(self.checkpoints, state, self.config.checkpoint.keep, moments)
        return self.checkpoints / f"step-{state.update:06d}"

    def close(self) -> None:
        """End what plays ahead, and close the files."""
        self.player.close()
        self.metrics.close()
        self.evals.close()

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
        # Of several processes none leaves the others alone: they ask each other between two updates (`loop._updates`).
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

    def _lines(self, name: str) -> JsonLines:
        return JsonLines(self.folder / name) if ranks.is_first() else NoLines()
