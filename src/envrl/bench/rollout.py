"""`envrl bench rollout`: the cost of playing an update's episodes, compared with `generate` turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from envrl.bench.measure import FirstUpdate, Watch, bench_model, clock_for, name_of
from envrl.build import env_maker, form_of, renderer_of, training_settings
from envrl.config.schema import Config
from envrl.errors import UserError
from envrl.models.load import LanguageModel
from envrl.models.runtime import peak_memory, prepare_torch, product_speed, reset_peak_memory, waiting, with_precision
from envrl.rollout.meter import Meter
from envrl.rollout.own_sampler import OwnSampler
from envrl.rollout.policy import Policy
from envrl.rollout.scheduler import RolloutStats
from envrl.types import Trajectory


def bench_rollout(config: Config, shape: str = "", *, generate: bool = True) -> dict[str, Any]:
    """Play an update's episodes with the recipe's model, or a random one of a shape; return the figures.

    Seconds by part: `prefill` (passes with chunks), `decode` (one token per slot), `replay` (the same from a CUDA
    graph), `record` (the same while a graph is recorded), `draw` (logits and sampling), `world`, and `other` (prompts,
    tokenizer). They are processor time if one thread does everything. FLOPs are 2 · parameters per token fed; the peak
    is that of a matrix product on this machine.
    """
    prepare_torch(config.train.threads)
    config = with_precision(config)
    make_env = env_maker(config)
    sampler = OwnSampler(bench_model(config, make_env, shape), config.rollout.precision)
    model = sampler.model
    policy = Policy(renderer_of(model, form_of(config)), sampler, model.codec)
    play = FirstUpdate(policy, make_env, config).play
    play(1, RolloutStats())  # warm up: choose kernels, reserve memory, encode commands
    watch = Watch(clock_for(model.device, make_env), waiting(model.device))
    reset_peak_memory(model.device)
    stats, sampler.meter = RolloutStats(clock=watch.clock), Meter(watch.wait, watch.clock)
    watch.start()
    trajectories = play(training_settings(config).max_steps, stats)
    watch.lap("total")
    figures = _figures(model, trajectories, sampler.meter, stats.env, watch)
    if generate:
        seconds = generate_by_turns(model, trajectories, config.rollout.temperature, watch)
        sampler = figures["seconds"]["total"] - figures["seconds"]["world"]
        figures["generate"] = {
            "seconds": seconds,
            "tokens_per_second": figures["tokens"]["drawn"] / seconds,
            "ratio": seconds / sampler,
        }
    return figures


def _figures(
    model: LanguageModel, trajectories: Sequence[Trajectory], meter: Meter, world: float, watch: Watch
) -> dict[str, Any]:
    count, total = len(trajectories), watch.seconds["total"]
    drawn = sum(len(step.action.token_ids) for t in trajectories for step in t.transitions)
    turns = sum(len(t.transitions) for t in trajectories)
    if not drawn:
        raise UserError("no episode took a step, since no first prompt fits the model's context: raise model.context")
    parts = {**meter.seconds, "world": world}
    precision = "bf16" if next(model.network.parameters()).dtype == torch.bfloat16 else "fp32"
    peak = product_speed(precision, model.device, watch.clock)
    flops = 2 * model.size * meter.fed
    return {
        "model": model.network.config.model_type,
        "parameters": model.size,
        "dtype": str(next(model.network.parameters()).dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "seconds_are": name_of(watch.clock),
        "episodes": count,
        "turns": turns,
        "tokens": {"fed": meter.fed, "with_padding": meter.cells, "drawn": drawn},
        "passes": meter.passes,
        "cuda_graphs": asdict(meter.recorded),
        "seconds": {"total": total, **parts, "other": total - sum(parts.values())},
        "rate": {"tokens": drawn / total, "fed": meter.fed / total, "episodes": count / total, "turns": turns / total},
        "peak_gflops": peak / 1e9,
        "mfu": flops / (total - world) / peak,
        "memory_mb": peak_memory(model.device) / 1e6,
    }


class _Lengths(StoppingCriteria):
    """Ends each row of a batch after its given number of new tokens."""

    def __init__(self, width: int, lengths: torch.Tensor) -> None:
        self._width, self._lengths = width, lengths

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return self._lengths <= input_ids.shape[1] - self._width


@torch.no_grad()
def generate_by_turns(
    model: LanguageModel, trajectories: Sequence[Trajectory], temperature: float, watch: Watch
) -> float:
    """Return the seconds of transformers' `generate` for the same turns, with all prompts of a turn in a padded batch.

    Each turn feeds the whole prompt again, and each row gets as many new tokens as the recorded response has.
    """
    settings = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=0, top_p=1.0, eos_token_id=None, pad_token_id=model.codec.pad
    )
    for turn in range(max(len(t.transitions) for t in trajectories)):
        rows = [
            (segment.token_ids[: span.start], span.stop - span.start)
            for trajectory in trajectories
            for segment in trajectory.segments
            for span in segment.spans
            if span.step == turn
        ]
        width = max(len(prompt) for prompt, _ in rows)
        ids = torch.full((len(rows), width), model.codec.pad)
        mask = torch.zeros_like(ids)
        for row, (prompt, _) in enumerate(rows):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype("int64"))
            mask[row, width - len(prompt) :] = 1
        lengths = torch.tensor([length for _, length in rows], device=model.device)
        settings.max_new_tokens = int(lengths.max())
        watch.start()
        model.network.generate(  # type: ignore[operator]
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([_Lengths(width, lengths)]),
        )
        watch.lap("generate")
    return watch.seconds["generate"]


def _each(seconds: dict[str, float], graphs: dict[str, int]) -> str:
    """Return the time of a decode pass with and without a CUDA graph in words, if there were both."""
    if not graphs["passes"] or not graphs["ordinary"]:
        return ""
    replayed, ordinary = seconds["replay"] / graphs["passes"], seconds["decode"] / graphs["ordinary"]
    return f" at {1e3 * replayed:.1f} ms each; {graphs['ordinary']:,} ordinary ones at {1e3 * ordinary:.1f} ms"


def table(figures: dict[str, Any]) -> str:
    """Return the figures as lines of text."""
    seconds, rate, tokens, graphs = (figures[name] for name in ("seconds", "rate", "tokens", "cuda_graphs"))
    share = ", ".join(
        f"{name} {value:.2f}"
        for name, value in seconds.items()
        if name != "total" and (value or name not in ("replay", "record"))
    )
    lines = [
        ("model", f"{figures['model']}, {figures['parameters']:,} parameters, {figures['dtype']}, {figures['device']}"),
        ("played", f"{figures['episodes']} episodes, {figures['turns']:,} turns, {figures['passes']:,} passes"),
        ("graphs", f"{graphs['graphs']:,} recorded, {graphs['passes']:,} passes from them{_each(seconds, graphs)}"),
        (
            "tokens",
            f"{tokens['fed']:,} fed ({tokens['with_padding']:,} with padding), {tokens['drawn']:,} in responses",
        ),
        ("seconds", f"{seconds['total']:.2f} ({figures['seconds_are']}): {share}"),
        (
            "a second",
            f"{rate['tokens']:,.0f} tokens of responses, {rate['fed']:,.0f} fed, {rate['turns']:,.1f} turns, "
            f"{rate['episodes']:.2f} episodes",
        ),
        ("MFU", f"{figures['mfu']:.1%} of {figures['peak_gflops']:,.1f} GFLOP/s, a matrix product's peak here"),
        ("memory", f"{figures['memory_mb']:,.0f} MB"),
    ]
    if "generate" in figures:
        other = figures["generate"]
        lines.append(("generate", f"{other['seconds']:.2f} s turn by turn: {other['ratio']:.1f} × the sampler's"))
    return "\n".join(f"{name:<9} {text}" for name, text in lines)
