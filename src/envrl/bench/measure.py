"""The tools of the benchmarks: a model and a world, a repeatable update, and clocks."""

from __future__ import annotations

import copy
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median

import torch

from envrl.batches.batch import Asks, build_batch
from envrl.build import env_maker, form_of, policy_of, renderer_of, training_settings
from envrl.config.schema import Config
from envrl.engine.heads import give_heads
from envrl.engine.local import loss_settings, optimiser_batches
from envrl.engine.optimizer import adamw
from envrl.engine.update import accumulate, clip_gradient, policy_logprobs
from envrl.envs.answers import listed_tasks, opened
from envrl.envs.pool import Worlds
from envrl.errors import UserError
from envrl.imitation.demonstrations import world_texts
from envrl.models.adapters import has_adapter
from envrl.models.load import LanguageModel, build_model, load_path
from envrl.models.runtime import prepare_torch, waiting
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.rollout.scheduler import RolloutStats
from envrl.trainer.rollouts import as_groups, whole_groups
from envrl.trainer.tasks import Tasks
from envrl.types import Row, Trajectory, TrajectoryGroup


@dataclass(slots=True)
class Watch:
    """A stopwatch with seconds by name, which waits for the device before it reads the clock."""

    clock: Callable[[], float]
    wait: Callable[[], None]
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    last: float = 0.0

    def start(self) -> None:
        self.wait()
        self.last = self.clock()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to `name`."""
        self.wait()
        now = self.clock()
        self.seconds[name] += now - self.last
        self.last = now


class Bench:
    """A model and a world for measurements; the learning rate is 0, so that every repeat does the same work."""

    def __init__(self, config: Config, shape: str = "") -> None:
        prepare_torch(config.train.threads)
        self.make_env = env_maker(config)
        self.model = give_heads(bench_model(config, self.make_env, shape), config)
        self.optimizer = adamw(self.model, 0.0, config.train.weight_decay)
        self.reference: LanguageModel | None = None
        if config.objective.kl_weight > 0 and has_adapter(self.model.network):
            self.reference = self.model  # swapping its adapter takes no time
        elif config.objective.kl_weight > 0:
            self.reference = LanguageModel(copy.deepcopy(self.model.network), self.model.codec)

    def watch(self) -> Watch:
        """Return a new watch with the clock of `clock_for`: other processes disturb processor time less."""
        return Watch(clock_for(self.model.device, self.make_env), waiting(self.model.device))

    def play(self, config: Config) -> list[TrajectoryGroup]:
        """Play the recipe's first update, and return its complete groups."""
        policy = policy_of(self.model, config, renderer_of(self.model, form_of(config)))
        return FirstUpdate(policy, self.make_env, config).groups(RolloutStats())

    def update(self, config: Config, groups: Sequence[TrajectoryGroup], watch: Watch) -> list[Row]:
        """Run an update on these episodes as training does; return the rows."""
        watch.start()
        alone = loss_settings(config, {})
        asked = partial(policy_logprobs, self.model, settings=alone)
        batch = build_batch(groups, config, renderer_of(self.model, form_of(config)), 1, Asks(logprobs=asked))
        rows = batch.rows
        if not rows:
            raise UserError(
                "no episode has a token to learn from; let rollout.actions be 'free', or take another world"
            )
        watch.lap("rows")
        settings = loss_settings(config, batch.weights)
        parts = optimiser_batches(config, rows, 1)
        old = policy_logprobs(self.model, rows, settings) if len(parts) > 1 else None
        watch.lap("old_logprobs")
        reference = policy_logprobs(self.reference, rows, settings) if self.reference else None
        watch.lap("reference")
        for part in parts:
            accumulate(self.model, part, settings, old, reference)
            watch.lap("passes")
            clip_gradient(list(self.model.parameters()), config.train.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            watch.lap("step")
        return rows


def clock_for(device: torch.device, make_env: Worlds) -> Callable[[], float]:
    """Return the processor clock if one CPU thread does everything, else the wall clock."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1 and not make_env.workers
    return time.process_time if alone else time.perf_counter


def name_of(clock: Callable[[], float]) -> str:
    """Return the name of a clock of `clock_for`."""
    return "processor" if clock is time.process_time else "wall clock"


def bench_model(config: Config, make_env: Worlds, shape: str = "") -> LanguageModel:
    """Return a model of a shape with random weights, or the recipe's model (from scratch, or `model.path`)."""
    model = config.model
    if shape and model.lora_rank:
        raise UserError(
            f"model.lora_rank = {model.lora_rank} needs a model in a folder, and --shape {shape} has none: set "
            "model.lora_rank = 0, or leave --shape out"
        )
    if model.path and not shape:
        return load_path(config)
    if config.rollout.is_chat:
        model = replace(model, chat_template="chatml")
    with opened(make_env()) as env:
        texts = world_texts([], env, config)
    return build_model(model, texts, config.seed, config.train.device, shape)


class FirstUpdate:
    """The episodes of the recipe's first update, which can be played repeatedly."""

    def __init__(self, policy: Policy, make_env: Worlds, config: Config) -> None:
        self._policy, self._make_env, self._config = policy, make_env, config
        self._settings = training_settings(config)
        with opened(make_env()) as env:
            tasks = listed_tasks(env, config.env.split, config.env.name)
        self._playing = Tasks(tasks, config).next(1, Counter())

    def play(self, turns: int, stats: RolloutStats) -> list[Trajectory]:
        """Play each episode for at most `turns` turns."""
        return play_episodes(
            self._policy,
            self._make_env,
            [each.assignment.task for each in self._playing],
            [each.member for each in self._playing],
            replace(self._settings, max_steps=turns),
            seed=self._config.seed,
            update=1,
            stats=stats,
        )

    def groups(self, stats: RolloutStats) -> list[TrajectoryGroup]:
        """Play each episode to its end; return the complete groups."""
        played = self.play(self._settings.max_steps, stats)
        return whole_groups(as_groups(played, [each.group for each in self._playing]))


def deal_returns(groups: Sequence[TrajectoryGroup], scale: float) -> list[TrajectoryGroup]:
    """Return the groups with every second episode rewarded, since a model from scratch would have no advantages."""
    return [
        replace(group, trajectories=tuple(_paid(t, scale * (i % 2)) for i, t in enumerate(group.trajectories)))
        for group in groups
    ]


def _paid(trajectory: Trajectory, reward: float) -> Trajectory:
    """Return an episode with a reward only at its last step."""
    steps = [replace(step, reward=0.0) for step in trajectory.transitions]
    if steps:
        steps[-1] = replace(steps[-1], reward=reward)
    return replace(trajectory, transitions=tuple(steps))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, minimum and maximum of repeated measurements."""
    return {"median": median(values), "min": min(values), "max": max(values)}
