"""Work on a GPU that nobody waits for: numbers sent there, and written at places all different."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(numbers: NDArray[Any] | Sequence[int], device: torch.device) -> Tensor:
    """Return numbers (integers where they are no array) as a tensor on a device; nobody waits for the copy."""
    array = numbers if isinstance(numbers, np.ndarray) else np.array(numbers, dtype=np.int64)
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def distinct_writes(device: torch.device) -> Iterator[None]:
    """Write to indices that are all different: CUDA's kernel for repeated ones sorts, and copies the whole target.

    A run asks torch for that kernel (`envrl.models.runtime.prepare_torch`); what is written here is the same.
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
