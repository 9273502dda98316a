"""The runtime: threads, kernels and precision that results depend on, waiting for the device, and peak memory."""

from __future__ import annotations

import ctypes
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

from envrl.config.schema import Config, Precision

_SIZES = {"cpu": 1024, "cuda": 8192}
"""Size of the square matrices whose product measures the peak speed of a device."""


@cache
def usable_threads() -> int:
    """Return the default number of torch threads: 2 if they pay, else 1.

    Two pay if this process may use two cores and a product then takes at most four fifths of the time. On busy cores
    they wait for each other, and a run takes three times as long as with one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return 1
    rounds = [(_product_seconds(1), _product_seconds(2)) for _ in range(9)]
    return 2 if median(two / one for one, two in rounds) <= 4 / 5 else 1


def _product_seconds(threads: int, size: int = 768, count: int = 3) -> float:
    """Return the seconds of `count` products of matrices (size, size), after one to warm up."""
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
    """Set the number of threads (0: `usable_threads`), use deterministic kernels and keep freed memory."""
    keep_freed_memory()
    torch.set_num_threads(threads or usable_threads())
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory costs time, and nothing here reads memory before it writes it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""


def keep_freed_memory() -> bool:
    """Reuse the freed memory of tensors of up to 1 GiB, if the C library is glibc (Linux); return whether this works.

    By default glibc returns large blocks to the system at once, which then clears the same pages for every layer: up to
    a seventh of an update's time.
    """
    library = _glibc()
    if library is None:
        return False
    # Older glibc accepts at most 32 MiB. If it accepts neither, do not set the trim threshold: alone it does harm.
    accepted = any(library.mallopt(_MMAP_THRESHOLD, size) for size in (1 << 30, 1 << 25))
    return bool(accepted and library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))


def give_back_memory() -> None:
    """Return the memory that `keep_freed_memory` kept to the system; once per update, since others may need it."""
    if library := _glibc():
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc; others number the options of `mallopt` differently."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "gnu_get_libc_version") else None


def product_speed(
    precision: str, device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the best FLOP/s of products of square matrices in "fp32" or "bf16" on a device (default: CPU)."""
    device = device or torch.device("cpu")
    size, wait = _SIZES[device.type], waiting(device)
    one = torch.ones(size, size, dtype=torch.bfloat16 if precision == "bf16" else torch.float32, device=device)
    seconds = list[float]()
    while len(seconds) < 8 and sum(seconds) < 1.0:  # some processors are a hundred times slower in bf16
        wait()
        began = clock()
        torch.mm(one, one)
        wait()
        seconds.append(clock() - began)
    return 2 * size**3 / min(seconds)


def product_speeds() -> dict[str, float]:
    """Return the FLOP/s of a CPU's products by precision."""
    return {precision: product_speed(precision) for precision in ("fp32", "bf16")}


@cache
def faster_precision(device: str) -> Literal["fp32", "bf16"]:
    """Return the precision of `auto`: bf16 on CUDA, and on a CPU whose bf16 products take at most 3/4 of the time."""
    if device.startswith("cuda"):
        return "bf16"
    speeds = product_speeds()
    return "bf16" if speeds["bf16"] >= 4 / 3 * speeds["fp32"] else "fp32"


def with_precision(config: Config, device: str = "") -> Config:
    """Return the configuration with `auto` replaced by the faster precision on its device, or on another one."""
    if "auto" not in (config.train.precision, config.rollout.precision):
        return config
    chosen = faster_precision(device or config.train.device)
    return in_place_of_auto(config, chosen, chosen)


def in_place_of_auto(config: Config, train: Precision, rollout: Precision) -> Config:
    """Return the configuration with `auto` replaced by these precisions."""
    if config.train.precision == "auto":
        config = replace(config, train=replace(config.train, precision=train))
    if config.rollout.precision == "auto":
        config = replace(config, rollout=replace(config.rollout, precision=rollout))
    return config


def waiting(device: torch.device) -> Callable[[], None]:
    """Return a function that waits for all work of a device, to call before reading a clock; a no-op on a CPU."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def reset_peak_memory(device: torch.device) -> None:
    """Reset the memory peak of a CUDA device, or that of this process if the system can (Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # 5 resets the peak


def peak_memory(device: torch.device) -> int:
    """Return the memory peak since the reset in bytes: of tensors on a CUDA device, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        if match:
            return 1024 * int(match[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
