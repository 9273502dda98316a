"""How long an update takes on an accelerator: its floating-point operations, bytes to be read, passes to be begun."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from math import ceil
from pathlib import Path

from envrl.costs.memory import FULL, HALF, Load, cache_positions, trainable
from envrl.costs.operations import Passes, forward_flops, update_flops
from envrl.costs.shape import Shape
from envrl.costs.workload import Workload
from envrl.errors import UserError

UTILISATION = 0.4
"""The share of an accelerator's dense products that an update reaches; assumed, as in well-run training."""
PREFILL = 0.25
"""The same of the sampler's passes over prompts; assumed."""
LAYER_SECONDS = 0.8e-3
"""What it costs to begin one layer's work from Python, whatever its size, as in a pass of one token; assumed."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What a device holds and does: GiB that programs can use, TFLOP/s of dense products, GB/s, USD an hour."""

    name: str
    memory: float
    bf16: float
    fp32: float
    bandwidth: float
    price: float = 0.0
    layer_seconds: float = LAYER_SECONDS

    def flops(self, bf16: bool) -> float:
        return 1e12 * (self.bf16 if bf16 else self.fp32)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of an update by phase."""

    rollout: float
    update: float

    @property
    def total(self) -> float:
        return self.rollout + self.update


# --- seconds ---------------------------------------------------------------------------------------------------------


def update_times(shape: Shape, work: Workload, load: Load, passes: Passes, scored: float, device: Accelerator) -> Times:
    """Return the seconds that an update takes on a device."""
    operations = update_flops(shape, work, passes, scored)
    micro_batches = max(1.0, work.trained * passes.both / load.micro_batch)
    optimiser = passes.steps * 9 * FULL * trainable(shape, load.lora_rank) / (1e9 * device.bandwidth)
    update = operations / (UTILISATION * device.flops(load.bf16)) + optimiser
    update += micro_batches * 3 * shape.layers * device.layer_seconds
    return Times(rollout_seconds(shape, work, load, device), update)


def rollout_seconds(shape: Shape, work: Workload, load: Load, device: Accelerator) -> float:
    """Return the seconds of playing an update's episodes at once, without the worlds.

    Prompts are bound by products in the sampler's precision. Each token of a turn is a pass over all slots, which
    reads the weights and half of the keys and values.
    """
    prompts = forward_flops(shape, work.fed, work.sequence) / (PREFILL * device.flops(load.sampling_bf16))
    cached = load.slots * cache_positions(load) * shape.attention_layers * 2 * shape.key_width / 2
    read = (HALF if load.sampling_bf16 else FULL) * (shape.parameters + cached) / (1e9 * device.bandwidth)
    passes = work.longest_turns * work.passes * ceil(work.episodes / load.slots)
    return prompts + passes * (read + shape.layers * device.layer_seconds)


# --- devices ---------------------------------------------------------------------------------------------------------


def accelerators(file: Path | None = None) -> tuple[list[Accelerator], str]:
    """Return the accelerators of a file, or of the table that ships, and when its prices were noted.

    Raises `UserError` where the file is not of that form.
    """
    try:
        text = (files("envrl.costs") / "accelerators.toml" if file is None else file).read_text(encoding="utf-8")
        table = tomllib.loads(text)
        found = [Accelerator(name, **{k: float(v) for k, v in e.items()}) for name, e in table["accelerators"].items()]
    except OSError as error:
        raise UserError(f"cannot read '{file}': {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"'{file}' is not a table of accelerators ({error}): each is a section [accelerators.\"NAME\"] with "
            "memory, bf16, fp32, bandwidth and price"
        ) from error
    return found, str(table.get("prices_as_of", ""))


def this_cpu(memory: float, speeds: Mapping[str, float]) -> Accelerator:
    """Return this processor as an accelerator, by its measured products in "fp32" and "bf16" (FLOP/s).

    Bandwidth is taken as 10 GB/s, and beginning a layer as 0.3 ms.
    """
    bf16, fp32 = speeds["bf16"] / 1e12, speeds["fp32"] / 1e12
    return Accelerator("this CPU", memory, bf16, fp32, 10.0, layer_seconds=0.3e-3)
