"""Detect that memory ran out, and release it, so that less can be tried."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SIGNS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Messages of allocators that raise a plain `RuntimeError`: torch's for the CPU, and cuBLAS for its workspace."""


class OutOfMemory(Exception):
    """Memory ran out in work on `parts` rows or episodes of at most `tokens` tokens each."""

    def __init__(self, parts: int, tokens: int) -> None:
        super().__init__(f"memory ran out in work on {parts} parts of at most {tokens} tokens")
        self.parts, self.tokens = parts, tokens


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that an allocation failed."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign.lower() in str(error).lower() for sign in _SIGNS)


@contextmanager
def counted_memory(parts: int, tokens: int) -> Iterator[None]:
    """Raise `OutOfMemory(parts, tokens)` if an allocation fails inside the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(parts, tokens) from error


def release_memory() -> None:
    """Release the memory of failed work. Call it outside the `except` block, which still holds the tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
