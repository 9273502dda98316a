"""What results may depend on beside the recipe (threads, kernels), and what a clock and the peak of memory need."""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import torch.utils.deterministic

from envrl.config.schema import Config


@cache
def usable_threads() -> int:
    """Return how many threads torch gets where none are asked for: 2 where they pay, else 1.

    Two pay where this process may use two cores and a product takes at most four fifths of the time with them. On cores
    that others keep busy they wait for each other, and a run takes three times as long as with one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return 1
    rounds = [(_product_seconds(1), _product_seconds(2)) for _ in range(9)]
    return 2 if median(two / one for one, two in rounds) <= 4 / 5 else 1


def _product_seconds(threads: int, size: int = 768, count: int = 3) -> float:
    """Return the seconds of some products of matrices (size, size), after one that does not count."""
    before, one = torch.get_num_threads(), torch.ones(size, size)
    torch.set_num_threads(threads)
    try:
        torch.mm(one, one)
        began = time.perf_counter()
        for _ in range(count):
            torch.mm(one, one)
        return time.perf_counter() - began
    finally:
        torch.set_num_threads(before)


def prepare_torch(threads: int) -> None:
    """Fix the number of threads (0: `usable_threads`) and take deterministic kernels."""
    torch.set_num_threads(threads or usable_threads())
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory would cost time, and nothing here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def product_speeds(size: int = 512, rounds: int = 8) -> dict[str, float]:
    """Return the FLOP/s of a CPU's product of matrices (size, size) in fp32 and bf16, the best of some."""
    found = {}
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        one = torch.ones(size, size, dtype=kind)
        seconds = []
        while len(seconds) < rounds and sum(seconds) < 1.0:  # some processors take a hundred times as long in bf16
            began = time.perf_counter()
            torch.mm(one, one)
            seconds.append(time.perf_counter() - began)
        found[name] = 2 * size**3 / min(seconds)
    return found


@cache
def faster_precision(device: str) -> Literal["fp32", "bf16"]:
    """Return what `auto` stands for: bf16 on CUDA, and on a CPU whose products in it take at most three quarters."""
    if device.startswith("cuda"):
        return "bf16"
    speeds = product_speeds()
    return "bf16" if speeds["bf16"] >= 4 / 3 * speeds["fp32"] else "fp32"


def with_precision(config: Config, device: str = "") -> Config:
    """Return the configuration with what is faster on its device, or another one, in place of `auto`."""
    train, rollout = config.train, config.rollout
    if "auto" not in (train.precision, rollout.precision):
        return config
    chosen = faster_precision(device or train.device)
    return replace(
        config,
        train=replace(train, precision=chosen if train.precision == "auto" else train.precision),
        rollout=replace(rollout, precision=chosen if rollout.precision == "auto" else rollout.precision),
    )


def waiting(device: torch.device) -> Callable[[], None]:
    """Return what waits until a device has done all that it was given, which a clock must; on a CPU it always has."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def reset_peak_memory(device: torch.device) -> None:
    """Count the peak of a CUDA device anew, or that of this process where the system can (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the number that stands for the peak


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held at once since the reset: by tensors on a CUDA device, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        if found:
            return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
