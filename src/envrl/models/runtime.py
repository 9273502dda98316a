"""What results may depend on beside the recipe (threads, kernels), and how much memory was taken."""

from __future__ import annotations

import os
import resource
import sys

import torch
import torch.utils.deterministic


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


def reset_peak_memory(device: torch.device) -> None:
    """Count the peak of a CUDA device anew; a process's own cannot be counted anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held at once: by tensors on a CUDA device since the reset, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
