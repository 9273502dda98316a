"""Asynchronous work on a GPU: copy numbers to it, and write to distinct indices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(numbers: NDArray[Any] | Sequence[int], device: torch.device) -> Tensor:
    """Return numbers (integers unless they are an array) as a tensor on a device, without waiting for the copy."""
    array = numbers if isinstance(numbers, np.ndarray) else np.array(numbers, dtype=np.int64)
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def distinct_writes(device: torch.device) -> Iterator[None]:
    """A context for writes to distinct indices: CUDA's deterministic kernel sorts, and copies the whole target.

    A run asks torch for that kernel (`envrl.models.runtime.prepare_torch`), which distinct indices do not need.
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
