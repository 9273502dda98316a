"""Measure the effect of rounding on a network's outputs, as the tolerance for comparing two ways to compute them.

No fixed tolerance works: thirty layers of real weights round a hundred times as coarsely as a toy of two. A float64
reference would need two or four times the weights' memory. So the network runs once more while every module's result is
moved by a unit in its last place, up or down. The difference is about the network's own error against float64
(`tests/test_admission.py`), costs one pass, and is never zero by luck, as it may be between two batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_COARSE_PRODUCTS = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}
"""The rounding unit of fp32 products by `torch.get_float32_matmul_precision()`."""


def rounding_unit(model: nn.Module) -> float:
    """Return the relative rounding unit of a model's computation, the largest of weights, autocast and products."""
    weight = next(model.parameters())
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return max(torch.finfo(dtype).eps, _COARSE_PRODUCTS[torch.get_float32_matmul_precision()])


def most_roundings(model: nn.Module) -> float:
    """Return the tolerance for two ways to compute the same outputs, in units of `roundings_apart`.

    Measured between correct ones: up to 1.2 in fp32, where sums of products also round, in a kernel-dependent order; up
    to 0.5 in bf16, whose sums are fp32. Between wrong ones, in fp32: 49 and more (docs/models.md).
    """
    return 10.0 if rounding_unit(model) <= torch.finfo(torch.float32).eps else 2.0


@contextmanager
def rounded_anew(model: nn.Module) -> Iterator[None]:
    """Shift the result of each leaf module by a unit in its last place, up or down by a fixed seed, in the block."""
    unit = rounding_unit(model)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)

    def moved(module: nn.Module, arguments: object, result: object) -> object:
        if not (isinstance(result, Tensor) and result.is_floating_point()):
            return result
        up = torch.empty_like(result).bernoulli_(0.5, generator=generator)
        return result * (1.0 - unit + 2.0 * unit * up)

    hooks = [part.register_forward_hook(moved) for part in model.modules() if not any(part.children())]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def roundings_apart(found: Sequence[Tensor], expected: Sequence[Tensor], anew: Sequence[Tensor]) -> float:
    """Return the distance of `found` from `expected`, tensors (tokens, numbers) of equal shapes, in roundings.

    That is the largest root mean square of a token's differences, divided by the same between `anew`, which was
    computed inside `rounded_anew`, and `expected`.
    """
    gap, rounding = (
        max(float((one - other).float().norm(dim=-1).max()) for one, other in zip(each, expected, strict=True))
        for each in (found, anew)
    )
    return gap / rounding if gap and rounding else gap and float("inf")
