"""`envrl bench train`: one real batch, and what an update on it costs, by phase and beside other auxiliary rows."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from envrl.config.schema import Config
from envrl.envs.pool import Worlds
from envrl.errors import UserError
from envrl.eval.split import env_maker, form_of, training_settings, wording_of
from envrl.models.adapters import add_adapter, has_adapter
from envrl.models.load import LanguageModel, build_model, load_policy
from envrl.models.rows import packs
from envrl.models.runtime import prepare_torch
from envrl.rollout.runner import play_model
from envrl.rollout.wording import MARKS
from envrl.trainer.batch import aux_weights, build_batch, draw_episodes, step_advantages, whole_groups
from envrl.trainer.demonstrations import world_texts
from envrl.trainer.flops import row_flops
from envrl.trainer.optimizer import adamw
from envrl.trainer.steps import loss_settings, optimiser_batches
from envrl.trainer.update import (
    LossSettings,
    accumulate,
    clip_gradient,
    micro_batches,
    policy_logprobs,
    precision_context,
)
from envrl.types import Row, Trajectory

PHASES = ("rows", "old_logprobs", "reference", "passes", "step")
"""Rows made; log-probs before the first step, and of the reference; forward and backward passes; the optimiser."""
WEIGHT = 0.1
"""Of an auxiliary loss that is compared and has no weight in the recipe."""
_SIZES = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices whose product gives the machine's peak."""


@dataclass(slots=True)
class Watch:
    """Seconds by name, of a clock that first waits for the device."""

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
    """A model and a world to measure with; the learning rate is 0, so that every repeat does the same work."""

    def __init__(self, config: Config, shape: str = "") -> None:
        prepare_torch(config.train.threads)
        self.make_env = env_maker(config)
        self.model = bench_model(config, self.make_env, shape)
        self.optimizer = adamw(self.model, 0.0, config.train.weight_decay)
        self.reference: LanguageModel | None = None
        if config.objective.kl_weight > 0 and has_adapter(self.model.network):
            self.reference = self.model  # its adapter is exchanged, which takes no time
        elif config.objective.kl_weight > 0:
            self.reference = LanguageModel(copy.deepcopy(self.model.network), self.model.codec)

    def watch(self) -> Watch:
        """Return a clock: processor seconds where one thread does everything, which other programs disturb less."""
        alone = self.model.device.type == "cpu" and torch.get_num_threads() == 1 and not self.make_env.workers
        wait = torch.cuda.synchronize if self.model.device.type == "cuda" else lambda: None
        return Watch(time.process_time if alone else time.perf_counter, wait)

    def play(self, config: Config) -> list[Trajectory]:
        """Play the recipe's first update."""
        rollout = config.rollout
        tasks = self.make_env().tasks(config.env.split)
        episodes = draw_episodes(tasks, config.seed, 1, rollout.tasks, rollout.group_size)
        played = play_model(
            self.model,
            wording_of(self.model, form_of(config)),
            self.make_env,
            [task for task, _ in episodes],
            [member for _, member in episodes],
            training_settings(config),
            seed=config.seed,
            update=1,
        )
        return whole_groups(played, rollout.group_size)

    def update(self, config: Config, trajectories: Sequence[Trajectory], watch: Watch) -> list[Row]:
        """Do what a run's update does with its episodes; return the rows."""
        watch.start()
        rows = build_batch(trajectories, config, wording_of(self.model, form_of(config)), 1).rows
        if not rows:
            raise UserError(
                "no episode has a token to learn from; let rollout.actions be 'free', or take another world"
            )
        watch.lap("rows")
        settings = loss_settings(config, aux_weights(config.objective, 1, config.train.updates))
        parts = optimiser_batches(config, rows, 1)
        old = policy_logprobs(self.model, rows, settings) if len(parts) > 1 else None
        watch.lap("old_logprobs")
        reference = policy_logprobs(self.reference, rows, settings) if self.reference else None
        watch.lap("reference")
        for part in parts:
            accumulate(self.model, part, settings, old, reference)
            watch.lap("passes")
            clip_gradient(list(self.model.network.parameters()), config.train.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            watch.lap("step")
        return rows


def bench_model(config: Config, make_env: Worlds, shape: str = "") -> LanguageModel:
    """Return a random model of a shape (`envrl.models.shapes`), or the recipe's own: from scratch, or `model.path`."""
    model = config.model
    if shape and model.lora_rank:
        raise UserError(
            f"model.lora_rank = {model.lora_rank} needs a model in a folder, and --shape {shape} has none: set "
            "model.lora_rank = 0, or leave --shape out"
        )
    if model.path and not shape:
        found = load_policy(model.path, config)
        if model.lora_rank:
            add_adapter(found.network, Path(model.path), model.lora_rank, model.lora_alpha, config.seed)
        return found
    if config.rollout.format != MARKS:
        model = replace(model, chat_template="chatml")
    return build_model(model, world_texts([], make_env(), config), config.seed, config.train.device, shape)


def deal_returns(trajectories: Sequence[Trajectory], scale: float) -> list[Trajectory]:
    """Return the same episodes, every second of which was won: what a model from scratch plays has no advantages."""
    dealt = []
    for number, trajectory in enumerate(trajectories):
        steps = [replace(step, reward=0.0) for step in trajectory.transitions]
        if steps and number % 2:
            steps[-1] = replace(steps[-1], reward=scale)
        dealt.append(replace(trajectory, transitions=tuple(steps)))
    return dealt


def bench_train(
    config: Config,
    shape: str = "",
    *,
    repeats: int = 5,
    compare: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Play one update and take it `repeats` times after a first one that does not count; return the figures.

    `compare` measures whole updates, play included, with and without the auxiliary losses, in turns.
    """
    bench = Bench(config, shape)
    say(f"playing {config.rollout.tasks * config.rollout.group_size} episodes")
    watch = bench.watch()
    watch.start()
    trajectories = bench.play(config)
    watch.lap("rollout")
    dealt = not any(advantages.any() for advantages in step_advantages(trajectories, config))
    trajectories = deal_returns(trajectories, config.rollout.reward_scale) if dealt else trajectories
    if bench.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.model.device)
    rows = bench.update(config, trajectories, bench.watch())
    laps, peak = [], matmul_peak(bench.model, config.train.precision, watch)
    for number in range(repeats):
        say(f"update {number + 1} of {repeats}")
        lap = bench.watch()
        bench.update(config, trajectories, lap)
        laps.append({name: lap.seconds[name] for name in PHASES})
        peak = max(peak, matmul_peak(bench.model, config.train.precision, watch))
    figures = _figures(bench, config, rows, laps, peak)
    figures["seconds"]["rollout"] = watch.seconds["rollout"]
    figures["episodes"], figures["returns"] = len(trajectories), "dealt" if dealt else "the world's"
    if compare:
        figures["compared"] = compare_arms(bench, config, repeats, dealt, say)
    return figures


def arms(config: Config) -> dict[str, Config]:
    """Return the recipe without auxiliary losses, with state prediction in the policy's pass, and with rows for both.

    Fractions are the recipe's. In the layout `steps` no row holds the next observation, so nothing is in its pass.
    """
    objective = config.objective
    state, inverse = objective.state_weight or WEIGHT, objective.inverse_weight or WEIGHT
    none = replace(objective, state_weight=0.0, inverse_weight=0.0, state_rows="separate")
    found = {
        "none": none,
        "state in pass": replace(none, state_weight=state, state_rows="in_pass", placebo=False),
        "state and inverse rows": replace(none, state_weight=state, inverse_weight=inverse),
    }
    if config.rollout.layout == "steps":
        del found["state in pass"]
    return {name: replace(config, objective=each) for name, each in found.items()}


def compare_arms(
    bench: Bench, config: Config, repeats: int, dealt: bool, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Return for each of `arms` the seconds of a whole update (play, rows, steps) and its ratio to that without any.

    All are measured in turn, `repeats` times after a first round that does not count, and the ratios are of one round.
    """
    seconds: dict[str, list[dict[str, float]]] = defaultdict(list)
    tokens: dict[str, int] = {}
    for number in range(repeats + 1):
        say(f"whole updates, round {number} of {repeats}")
        for name, arm in arms(config).items():
            watch = bench.watch()
            watch.start()
            played = bench.play(arm)
            watch.lap("rollout")
            played = deal_returns(played, config.rollout.reward_scale) if dealt else played
            rows = bench.update(arm, played, watch)
            tokens[name] = sum(len(row.token_ids) for row in rows)
            if number:
                seconds[name].append({**watch.seconds, "total": sum(watch.seconds.values())})
    base = [lap["total"] for lap in seconds["none"]]
    return {
        name: {
            "trained_tokens": tokens[name],
            "seconds": {part: median(lap[part] for lap in laps) for part in laps[0]},
            "ratio": _spread([lap["total"] / other for lap, other in zip(laps, base, strict=True)]),
        }
        for name, laps in seconds.items()
    }


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures as lines of text."""
    seconds, tokens, mfu = figures["seconds"], figures["tokens"], figures["mfu"]
    parts = ", ".join(f"{name} {seconds[name]['median']:.3f}" for name in PHASES)
    total = seconds["total"]
    lines = [
        ("model", f"{figures['model']}, {figures['parameters']:,} parameters, {figures['precision']}"),
        ("machine", f"{figures['device']}, {figures['threads']} threads, {figures['peak_gflops']:,.1f} GFLOP/s"),
        (
            "batch",
            f"{figures['episodes']} episodes, {figures['rows']} rows of at most {figures['longest_row']:,} tokens",
        ),
        ("", f"{tokens['trained']:,} tokens, {tokens['scored']:,} scored; returns {figures['returns']}"),
        (
            "",
            f"{figures['micro_batches']} micro-batches, {figures['optimiser_steps']} optimiser steps, "
            f"{figures['padding']:.1%} padding",
        ),
        (
            "update",
            f"{total['median']:.3f} s ({total['min']:.3f} to {total['max']:.3f}, {figures['seconds_are']}): {parts}",
        ),
        ("a second", f"{figures['rate']['tokens']:,.0f} tokens, {figures['rate']['rows']:,.1f} rows"),
        ("MFU", f"{mfu['update']:.1%} of the update, {mfu['passes']:.1%} of the passes"),
        ("memory", f"{figures['memory_mb']:,.0f} MB"),
    ]
    for name, arm in figures.get("compared", {}).items():
        ratio, total = arm["ratio"], arm["seconds"]["total"]
        lines.append(
            (
                "whole",
                f"{name}: {total:.3f} s, {ratio['median']:.3f} x ({ratio['min']:.3f} to {ratio['max']:.3f}), "
                f"{arm['trained_tokens']:,} tokens",
            )
        )
    return "\n".join(f"{name:<9} {text}" for name, text in lines)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _figures(
    bench: Bench, config: Config, rows: Sequence[Row], laps: Sequence[Mapping[str, float]], peak: float
) -> dict[str, Any]:
    model, settings = bench.model, loss_settings(config, {})
    steps = [[len(row.token_ids) for row in part] for part in _micro_batches(bench, config, rows, settings)]
    with precision_context(settings.precision, model.device):
        padded = not packs(model.network)
    tokens = sum(map(sum, steps))
    cells = sum(len(lengths) * max(lengths) for lengths in steps) if padded else tokens
    totals = [sum(lap.values()) for lap in laps]
    seconds = {name: _spread([lap[name] for lap in laps]) for name in PHASES} | {"total": _spread(totals)}
    flops = row_flops(model.network, rows)
    epochs = config.train.epochs
    update, passes = seconds["total"]["median"] - seconds["rows"]["median"], seconds["passes"]["median"]
    done = flops.again if settings.checkpointing else flops.both
    return {
        "model": model.network.config.model_type,
        "parameters": model.parameters(),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "precision": settings.precision,
        "seconds_are": "processor" if bench.watch().clock is time.process_time else "wall clock",
        "rows": len(rows),
        "longest_row": max(map(max, steps)),
        "micro_batches": len(steps),
        "optimiser_steps": len(optimiser_batches(config, rows, 1)),
        "tokens": {"trained": tokens, "scored": sum(len(term.positions_T) for row in rows for term in row.terms)},
        "padding": 1 - tokens / cells,
        "seconds": seconds,
        "rate": {
            "tokens": tokens / epochs / seconds["total"]["median"],
            "rows": len(rows) / seconds["total"]["median"],
        },
        "peak_gflops": peak / 1e9,
        "gflop": {"useful": epochs * flops.both / 1e9, "done": epochs * done / 1e9},
        "mfu": {
            "update": epochs * flops.both / update / peak,
            "passes": epochs * flops.both / passes / peak,
            "passes_with_recomputation": epochs * done / passes / peak,
        },
        "memory_mb": _memory(model),
    }


def _micro_batches(bench: Bench, config: Config, rows: Sequence[Row], settings: LossSettings) -> list[list[Row]]:
    return [
        batch for part in optimiser_batches(config, rows, 1) for batch in micro_batches(bench.model, part, settings)
    ]


def matmul_peak(model: LanguageModel, precision: str, watch: Watch) -> float:
    """Return the FLOPs a second of a square matrix product in the update's precision on its device, the best of six."""
    size = _SIZES[model.device.type]
    one = torch.ones(size, size, dtype=torch.bfloat16 if precision == "bf16" else torch.float32, device=model.device)
    best = 0.0
    for _ in range(6):
        watch.start()
        one @ one
        began = watch.last
        watch.lap("product")
        best = max(best, 2 * size**3 / (watch.last - began))
    return best


def _memory(model: LanguageModel) -> float:
    """Return the most memory held so far, MB: of the process, or on a GPU of its allocator since the first update."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
