"""The warm start before RL: imitation of demonstrations, with any auxiliary losses that have a weight."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from envrl import ranks
from envrl.batches.auxiliary import weights_of
from envrl.batches.examples import pair_rows
from envrl.build import form_of, renderer_of
from envrl.config.schema import Config
from envrl.engine.checkpoint import (
    Due,
    latest_checkpoint,
    load_state,
    save_checkpoint,
    save_folder,
    save_state,
    verify_checkpoint,
)
from envrl.engine.guard import Guard
from envrl.engine.optimizer import Optimizer, adamw, muon
from envrl.engine.placement import HERE, Placement
from envrl.engine.token_losses import auxiliary_losses
from envrl.engine.update import LossSettings
from envrl.envs.answers import opened
from envrl.envs.protocol import TextEnv
from envrl.errors import Interrupted, UserError
from envrl.eval.context_check import check_room_of_run, either, longer_context
from envrl.files import JsonLines, NoLines
from envrl.imitation.demonstrations import (
    batch_rows,
    collect,
    experience_pair,
    world_texts,
    written,
)
from envrl.imitation.measure import measure_imitation
from envrl.imitation.method import Lesson, gathered_by, lesson_from_json, lesson_to_json, method_of
from envrl.imitation.player import ModelPlayer
from envrl.models.adapters import put_tensors, trained_tensors
from envrl.models.load import LanguageModel, build_model, load_path, load_policy, save_model
from envrl.models.out_of_memory import release_memory
from envrl.progress import Reporter
from envrl.randomness import key_of
from envrl.rollout.predict import predict_targets
from envrl.types import Pair

FOLDER = "warm_start"
PARTIAL = "warm_start.partial"


@dataclass(frozen=True, slots=True)
class Hooks:
    """Callbacks of the stage: `poll` may raise, `show` gets (done, total, figures)."""

    poll: Callable[[], None]
    show: Callable[[int, int, dict[str, float]], None]
    reporter: Reporter = field(default_factory=Reporter)


def warm_start(config: Config, run: Path, make_env: Callable[[], TextEnv], hooks: Hooks) -> LanguageModel:
    """Return the model that RL starts from, and save it in `RUN/warm_start`; a finished stage is only loaded.

    `warm_start.path` copies the folder of another run; `warm_start.demonstrations = 0` starts from the bare model.
    Several processes imitate together, each with a share of the rows and of what is trained; the first one writes.
    """
    folder = run / FOLDER
    if not ranks.of_first(folder.exists):
        if not config.warm_start.path:
            _Stage(config, run, make_env, hooks).run()
            if ranks.count() > 1:
                release_memory()  # what runs in shards refers to itself
        elif ranks.is_first():
            source = Path(config.warm_start.path)
            verify_checkpoint(source)
            save_folder(folder, lambda aside: _copy(source, aside))
    ranks.wait()
    with hooks.reporter.phase("loading the model"):
        verify_checkpoint(folder)
        if ranks.is_first():
            shutil.rmtree(run / PARTIAL, ignore_errors=True)
        return load_policy(folder, config)


def _placed(model: LanguageModel, precision: str) -> Placement:
    """Return the place of a model: this process, or shards of several, which take the model's own weights apart."""
    if ranks.count() == 1:
        return HERE
    from envrl.engine.shards import Shards

    return Shards(model, precision)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


class _Stage:
    """Imitation in progress, with all the state that a killed stage needs to resume."""

    def __init__(self, config: Config, run: Path, make_env: Callable[[], TextEnv], hooks: Hooks) -> None:
        self.config, self.run_folder, self.make_env, self.hooks = config, run, make_env, hooks
        self.auxiliaries = config.auxiliaries("warm_start")
        self.training, self.held_out = ranks.of_first(lambda: collect(config, make_env, hooks.poll, hooks.reporter))
        self.log = JsonLines(run / "warm_start.jsonl") if ranks.is_first() else NoLines()
        self.method = method_of(config)
        self.best, self.waited, self.skips = math.inf, 0, 0
        self.round, self.round_began, self.epochs_before = 0, 0, 0
        self.gathered: list[Lesson] = []
        self.figures: dict[str, float] = {}
        latest = ranks.of_first(lambda: latest_checkpoint(run / PARTIAL))
        with hooks.reporter.phase("making the model"):
            self.model = self._fresh_model() if latest is None else load_policy(latest, config)
        self.renderer = renderer_of(self.model, form_of(config))
        self.place = _placed(self.model, config.train.precision)
        self.optimizer = self._fresh_optimizer()
        self.step, self.tokens = 0, 0
        if latest is None:
            self.best_weights = copy.deepcopy(trained_tensors(self.model.network))
            self.log.truncate(0)
        else:
            self._restore(latest)
        wanted = len(self.training)
        self.training, self.held_out = self._fitting(self.training), self._fitting(self.held_out)
        if wanted and not self.training:
            asked = config.rollout.prompt_tokens
            also = f", or their prompts than rollout.prompt_tokens = {asked}" if asked else ""
            longer = f"longer than the model's context of {self.model.context} tokens{also}"
            ways = ["raise rollout.prompt_tokens"] * bool(asked) + [longer_context(config)]
            steps = ["set rollout.layout = 'steps'"] * (config.rollout.layout == "concat")
            raise UserError(f"all {wanted} demonstrations are {longer}: {either(ways, steps)}")
        if latest is None and not config.model.path:  # `check_inputs` checked an existing model before the run
            check_room_of_run(self.model, make_env, config)
        limit, say = config.train.max_grad_norm, hooks.reporter.say
        self.guard = Guard(self.model, self.optimizer, limit, run, say, self.place)
        self.guard.skips = self.skips
        self.gathered = self._fitting(self.gathered)
        if latest is None:
            self._gather(0)
        self._begin_round()

    def _gather(self, number: int) -> None:
        """Gather the lessons of a round."""
        poll, reporter = self.hooks.poll, self.hooks.reporter
        player = ModelPlayer(self.model, self.renderer, self.config, self.make_env, poll, reporter)
        gathered = gathered_by(self.method, self.config, number, self.training, player)
        self.gathered += self._fitting(gathered.lessons)
        self.figures |= {f"gathered/{name}": float(value) for name, value in gathered.figures.items()}
        if gathered.queries:
            self.figures["queries"] = self.figures.get("queries", 0.0) + gathered.queries

    def _begin_round(self) -> None:
        """Set out what the present round learns from, and how many steps it takes."""
        self.lessons = self.method.learns(self.round, self.training, self.gathered)
        self.steps_an_epoch = max(1, math.ceil(len(self.lessons) / self.config.warm_start.batch))
        epochs = self.method.passes[self.round] if self.lessons else 0
        self.steps = self.round_began + self.steps_an_epoch * epochs

    def _next_round(self) -> None:
        """End a round with its best weights, gather the lessons of the next one, and save them."""
        self._keep_best()
        self._gather(self.round + 1)  # if it is interrupted, the round before is saved, and it is gathered again
        self.epochs_before += (self.step - self.round_began) // self.steps_an_epoch
        self.round, self.round_began, self.best, self.waited = self.round + 1, self.step, math.inf, 0
        self._begin_round()
        self._save()

    def _keep_best(self) -> None:
        if self.steps > self.round_began:
            put_tensors(self.model.network, self.best_weights)

    def _fresh_model(self) -> LanguageModel:
        config = self.config
        if config.model.path:
            return load_path(config)

        def texts() -> list[str]:
            with opened(self.make_env()) as env:
                return world_texts([*self.training, *self.held_out], env, config)

        return build_model(config.model, ranks.of_first(texts), config.seed, config.train.device)

    def _fresh_optimizer(self) -> Optimizer:
        warm = self.config.warm_start
        if warm.optimizer == "muon":
            return muon(self.model, warm.learning_rate, warm.matrix_learning_rate, self.place.muon)
        return adamw(self.model, warm.learning_rate)

    def _fitting(self, demonstrations: list[Lesson]) -> list[Lesson]:
        """Return the demonstrations that fit the model's context, with tokens."""
        context = self.model.context
        fitting = [each for d in demonstrations if (each := written(d, self.renderer)) is not None]
        if len(fitting) < len(demonstrations):
            left_out = len(demonstrations) - len(fitting)
            what = f"left out {left_out} demonstrations that are longer than the context of {context} tokens"
            self.hooks.reporter.say(what)
        return fitting

    def run(self) -> None:
        """Train all rounds, each to its end or until the held-out loss has not fallen for `patience` epochs.

        The best weights of a round are kept.
        """
        try:
            self._run_round()
            while self.round + 1 < len(self.method.passes):
                self._next_round()
                self._run_round()
        except Interrupted:
            self._save()
            raise Interrupted(f"interrupted; saved {self.run_folder}: go on with --resume") from None
        self._keep_best()
        self.log.close()
        with self.hooks.reporter.phase("writing the model"):
            if (model := self.place.whole(self.model)) is not None:
                save_folder(self.run_folder / FOLDER, lambda aside: save_model(model, aside))

    def _run_round(self) -> None:
        patience, due = (
            self.config.warm_start.patience,
            Due(self.config.warm_start.every, self.config.checkpoint.minutes),
        )
        while self.step < self.steps and not (patience and self.waited >= patience):
            epoch, place = divmod(self.step - self.round_began, self.steps_an_epoch)
            ranks.agree(self.hooks.poll)
            record = self._train_step(self.epochs_before + epoch, place)
            self.step += 1
            if (self.step - self.round_began) % self.steps_an_epoch == 0:
                record |= self._measure()
            self.log.append(record)
            self.hooks.show(self.step, self.steps, {k: v for k, v in record.items() if isinstance(v, float)})
            if due(self.step):
                self._save()

    def _train_step(self, epoch: int, place: int) -> dict[str, Any]:
        config, warm = self.config, self.config.warm_start
        began = time.perf_counter()
        order = np.random.Generator(np.random.PCG64(key_of(config.seed, "epoch", epoch))).permutation(len(self.lessons))
        chosen = [self.lessons[i] for i in order[place * warm.batch : (place + 1) * warm.batch]]
        step, steps = self.step - self.round_began, self.steps - self.round_began
        weights = weights_of(self.auxiliaries, step + 1, steps)
        weighed = [each for each in self.auxiliaries if weights[each.name] > 0]
        key = (config.seed, "auxiliary", epoch, place)
        rows, figures = batch_rows(chosen, weighed, self.renderer, key, self._predict)
        pairs = [experience_pair(each, config, self.renderer) for each in chosen if each.predicted]
        rows += pair_rows([p for p in pairs if len(p.prompt) + len(p.target) <= self.model.context], "experience")
        settings = LossSettings(
            {"imitation": 1.0, "experience": 1.0, **weights},
            precision=config.train.precision,
            micro_batch_tokens=config.train.micro_batch_tokens,
            checkpointing=config.train.checkpointing,
            auxiliary_losses=auxiliary_losses(self.auxiliaries),
        )
        factor = learning_rate_factor(step, steps)
        self.optimizer.scale(factor)
        poll = self.hooks.poll if self.place is HERE else lambda: None  # of several none leaves the others in a step
        outcome = self.guard.step(f"warm-start-{self.step + 1:06d}", rows, settings, poll=poll)
        self.tokens += outcome.tokens
        return {
            "step": self.step + 1,
            "epoch": epoch,
            "tokens": self.tokens,
            "learning_rate": warm.learning_rate * factor,
            **({"round": self.round} if len(self.method.passes) > 1 else {}),
            **self.figures,
            **figures,
            **outcome.figures,
            "seconds": {"total": time.perf_counter() - began},
        }

    def _predict(self, pairs: Sequence[Pair]) -> list[str]:
        return predict_targets(self.model, pairs, self.renderer.stops)

    def _measure(self) -> dict[str, float]:
        held_out = self.held_out or self.training[:64]
        measured = measure_imitation(self.model, self.renderer, held_out, self.config, self.hooks.reporter, self.place)
        loss = measured["held_out/imitation"]
        imitates = any(any(each.imitated) or each.branches for each in self.lessons)
        if loss < self.best or not imitates:
            self.best, self.waited = (loss if imitates else math.inf), 0
            self.best_weights = copy.deepcopy(trained_tensors(self.model.network))
        else:
            self.waited += 1
        return measured

    def _save(self) -> None:
        self.log.sync()
        tensors = {f"optimizer.{k}": v for k, v in self.optimizer.tensors().items()}
        tensors = self.place.gathered(tensors | {f"best.{k}": v for k, v in self.best_weights.items()})
        model = self.place.whole(self.model)
        if model is None:
            return

        def write(folder: Path) -> None:
            save_model(model, folder)
            meta = {"step": self.step, "tokens": self.tokens, "waited": self.waited, "log": self.log.offset}
            meta |= {"skips": self.guard.skips, "round": self.round, "round_began": self.round_began}
            meta |= {"epochs_before": self.epochs_before, "figures": self.figures}
            meta["gathered"] = [lesson_to_json(each) for each in self.gathered]
            meta["best"] = self.best if math.isfinite(self.best) else None
            save_state(folder / "state", tensors, meta)

        save_checkpoint(self.run_folder / PARTIAL, f"step-{self.step:06d}", write, keep=1)

    def _restore(self, folder: Path) -> None:
        tensors, meta = load_state(folder / "state")
        tensors = self.place.spread(tensors)
        self.optimizer.restore({k[10:]: v for k, v in tensors.items() if k.startswith("optimizer.")})
        self.best_weights = {k[5:]: v for k, v in tensors.items() if k.startswith("best.")}
        self.step, self.tokens, self.waited = meta["step"], meta["tokens"], meta["waited"]
        self.skips = meta.get("skips", 0)
        self.round, self.round_began = meta.get("round", 0), meta.get("round_began", 0)
        self.epochs_before, self.figures = meta.get("epochs_before", 0), meta.get("figures", {})
        self.gathered = [lesson_from_json(each) for each in meta.get("gathered", ())]
        self.best = math.inf if meta["best"] is None else meta["best"]
        self.log.truncate(meta["log"])


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the fraction of the peak learning rate: linear over the first 5 % of the steps, then a cosine to 0.1."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * done))
