"""A stand-in for CUDA graphs: what a pass does to its tensors is recorded, and done again to the very same ones."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

Pass = Callable[[], Tensor]


def record(run: Pass) -> Pass:
    """Return what repeats a pass, operation by operation; it never looks at the model or the cache again."""
    recorded = make_fx(lambda: run())()

    def replay() -> Tensor:
        return recorded()

    return replay
