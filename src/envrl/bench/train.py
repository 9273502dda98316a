"""`envrl bench train`: the cost of an update on a real batch, by phase, and compared between auxiliary objectives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from envrl.batches.batch import step_advantages
from envrl.bench.flops import batch_flops
from envrl.bench.measure import Bench, deal_returns, name_of, spread
from envrl.config.schema import Config
from envrl.engine.local import loss_settings, optimiser_batches
from envrl.engine.update import micro_batches, precision_context
from envrl.models.rows import runs_as_tree
from envrl.models.runtime import peak_memory, product_speed, reset_peak_memory, with_precision
from envrl.samples.packing import tokens_run
from envrl.types import Row, episodes_of

PHASES = ("rows", "old_logprobs", "reference", "passes", "step")
"""Making rows; old log-probs; reference log-probs; forward and backward passes; the optimiser."""
WEIGHT = 0.1
"""Weight of a compared auxiliary loss that has none in the recipe."""


def bench_train(
    config: Config,
    shape: str = "",
    *,
    repeats: int = 5,
    compare: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Play one update, train on it once to warm up and then `repeats` times; return the figures.

    `compare` measures whole updates, rollouts included, with and without the auxiliary losses, in turns.
    """
    config = with_precision(config)
    bench = Bench(config, shape)
    say(f"playing {config.rollout.tasks * config.rollout.group_size} episodes")
    watch = bench.watch()
    watch.start()
    groups = bench.play(config)
    watch.lap("rollout")
    dealt = not any(np.any(step) for advantages in step_advantages(groups, config) for step in advantages)
    groups = deal_returns(groups, config.rollout.reward_scale) if dealt else groups
    reset_peak_memory(bench.model.device)
    rows = bench.update(config, groups, bench.watch())
    laps, peak = [], product_speed(config.train.precision, bench.model.device, watch.clock)
    for number in range(repeats):
        say(f"update {number + 1} of {repeats}")
        lap = bench.watch()
        bench.update(config, groups, lap)
        laps.append({name: lap.seconds[name] for name in PHASES})
        peak = max(peak, product_speed(config.train.precision, bench.model.device, watch.clock))
    figures = _figures(bench, config, rows, laps, peak)
    figures["seconds"]["rollout"] = watch.seconds["rollout"]
    figures["episodes"], figures["returns"] = len(episodes_of(groups)), "dealt" if dealt else "the world's"
    if compare:
        figures["compared"] = compare_arms(bench, config, repeats, dealt, say)
    return figures


def arms(config: Config) -> dict[str, Config]:
    """Return the recipe without auxiliary objectives, with prediction in pass, and with state and inverse rows.

    Fractions are the recipe's. In the layout `steps` no row holds the next observation, so no arm is in pass.
    """
    none = {key: value for key, value in config.owned.items() if not key.startswith("auxiliary.")}

    def weighed(*names: str) -> Config:
        own = {key: value for name in names for key, value in config.owned.items() if key.startswith(_table(name))}
        weights = {f"{_table(name)}weight": own.get(f"{_table(name)}weight", WEIGHT) for name in names}
        return replace(config, owned=none | own | weights)

    arm = {"none": weighed(), "state in pass": weighed("echo"), "state and inverse rows": weighed("state", "inverse")}
    if config.rollout.layout == "steps":
        del arm["state in pass"]
    return arm


def _table(name: str) -> str:
    return f"auxiliary.{name}."


def compare_arms(
    bench: Bench, config: Config, repeats: int, dealt: bool, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Return for each of `arms` the seconds of a whole update (rollouts, rows, steps) and its ratio to the arm `none`.

    After a warm-up round the arms are measured in turn, `repeats` times, and each ratio is within one round.
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
            "ratio": spread([lap["total"] / other for lap, other in zip(laps, base, strict=True)]),
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
        ("", f"{tokens['trained']:,} tokens, {tokens['run']:,} run, {tokens['scored']:,} scored"),
        (
            "",
            f"{figures['micro_batches']} micro-batches, {figures['optimiser_steps']} optimiser steps, "
            f"returns {figures['returns']}",
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


def _figures(
    bench: Bench, config: Config, rows: Sequence[Row], laps: Sequence[Mapping[str, float]], peak: float
) -> dict[str, Any]:
    model, settings = bench.model, loss_settings(config, {})
    batches = [b for part in optimiser_batches(config, rows, 1) for b in micro_batches(model, part, settings)]
    with precision_context(settings.precision, model.device):
        padded = not runs_as_tree(model.network)
    tokens = sum(len(row.token_ids) for batch in batches for row in batch)
    run = sum(tokens_run(batch, padded=padded) for batch in batches)
    totals = [sum(lap.values()) for lap in laps]
    seconds = {name: spread([lap[name] for lap in laps]) for name in PHASES} | {"total": spread(totals)}
    flops, epochs = batch_flops(model.network, batches, padded=padded), config.train.epochs
    update, passes = seconds["total"]["median"] - seconds["rows"]["median"], seconds["passes"]["median"]
    done = flops.again if settings.checkpointing else flops.both
    return {
        "model": model.network.config.model_type,
        "parameters": model.size,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "precision": settings.precision,
        "seconds_are": name_of(bench.watch().clock),
        "rows": len(rows),
        "longest_row": max(len(row.token_ids) for row in rows),
        "micro_batches": len(batches),
        "optimiser_steps": len(optimiser_batches(config, rows, 1)),
        "tokens": {
            "trained": tokens,
            "run": run,
            "scored": sum(len(term.positions_T) for row in rows for term in row.terms),
        },
        "seconds": seconds,
        "rate": {
            "tokens": tokens / epochs / seconds["total"]["median"],
            "rows": len(rows) / seconds["total"]["median"],
        },
        "peak_gflops": peak / 1e9,
        "gflop": {"useful": flops.both / 1e9, "done": done / 1e9},
        "mfu": {
            "update": flops.both / update / peak,
            "passes": flops.both / passes / peak,
            "passes_with_recomputation": done / passes / peak,
        },
        "memory_mb": peak_memory(model.device) / 1e6,
    }
