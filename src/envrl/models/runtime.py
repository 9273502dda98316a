"""What results may depend on beside the recipe (threads, kernels), and how much memory was taken."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic
from numpy.typing import NDArray
from torch import Tensor


def usable_threads() -> int:
    """Return how many threads torch gets where none are asked for: one a core that this process may use, at most 2."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2, cores)


def prepare_torch(threads: int) -> None:
    """Fix the number of threads (0: `usable_threads`) and take deterministic kernels."""
    torch.set_num_threads(threads or usable_threads())
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory would cost time, and nothing here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def distinct_writes(device: torch.device) -> Iterator[None]:
    """Write to indices that are all different: CUDA's kernel for repeated ones sorts, and copies the whole target.

    What they write is the same.
    """
    if device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn)


def sent(numbers: NDArray[Any] | Sequence[int], device: torch.device) -> Tensor:
    """Return numbers (integers where they are no array) as a tensor on a device; nobody waits for the copy to a GPU."""
    array = numbers if isinstance(numbers, np.ndarray) else np.array(numbers, dtype=np.int64)
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


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
