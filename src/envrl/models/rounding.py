"""How far rounding alone moves a network's numbers: what two ways to compute the same are compared by.

No fixed number serves: thirty layers of real weights round a hundred times as coarsely as a toy of two. A float64
reference would say it, but needs twice or four times the weights' memory. So the network runs once more while every
module's result is moved by a unit in its last place, up or down. The outcome is as far off as float64 shows the
network's own pass to be (`tests/test_admission.py`), costs a pass, and is never zero by luck, as between two batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_COARSE_PRODUCTS = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}
"""Unit in the last place of what fp32 products are rounded to, by `torch.get_float32_matmul_precision()`."""


def rounding_unit(model: nn.Module) -> float:
    """Return the unit in the last place, relative to 1, of what a model computes in: weights, autocast, products."""
    weight = next(model.parameters())
    kind = weight.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return max(torch.finfo(dtype).eps, _COARSE_PRODUCTS[torch.get_float32_matmul_precision()])


def most_roundings(model: nn.Module) -> float:
    """Return how many roundings (`roundings_apart`) two ways to compute the same may lie apart.

    Measured between right ones: up to 1.2 in fp32, where sums of products round, too, in an order that is the
    kernel's own; up to 0.5 in bf16, whose sums are fp32. Between wrong ones, in fp32: 49 and more (docs/models.md).
    """
    return 10.0 if rounding_unit(model) <= torch.finfo(torch.float32).eps else 2.0


@contextmanager
def rounded_anew(model: nn.Module) -> Iterator[None]:
    """Have each module without parts give results that are a unit in the last place off, up or down by a fixed seed."""
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
    """Return how many roundings lie between `found` and `expected`, tensors (tokens, numbers) of like shapes.

    That is the largest root mean square of a token's differences, in units of the same between `anew`, which was
    computed while `rounded_anew`, and `expected`.
    """
    gap, rounding = (
        max(float((one - other).float().norm(dim=-1).max()) for one, other in zip(each, expected, strict=True))
        for each in (found, anew)
    )
    return gap / rounding if gap and rounding else gap and float("inf")
