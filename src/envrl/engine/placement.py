"""Where rows are run and weights lie: all of them in this process, or dealt out to several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from envrl.models.load import LanguageModel
from envrl.types import Row

T = TypeVar("T")


class Placement(Protocol):
    """Deals rows and weights out to processes, and puts together what each of them found and holds."""

    @property
    def muon(self) -> type[torch.optim.Muon]:
        """Muon of matrices that lie so."""
        ...

    def passes(self, rows: Sequence[Row], batches: Callable[[Sequence[Row]], list[list[Row]]]) -> list[list[Row]]:
        """Return the micro-batches of this process; an empty one where another process has more."""
        ...

    def run(self, work: Callable[[], T]) -> T:
        """Run a pass through the network."""
        ...

    def together(self, thing: T) -> list[T]:
        """Return what each process gives."""
        ...

    def norm(self, parameters: Sequence[Tensor]) -> float:
        """Return the norm of the whole gradient."""
        ...

    def scale(self, parameters: Sequence[Tensor], limit: float, norm: float) -> None:
        """Scale the gradient down to a norm of `limit`."""
        ...

    def spread(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return whole tensors, which each process has, as this place holds them."""
        ...

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of this place as whole ones: of several processes the first gets them, on the CPU."""
        ...

    def whole(self, model: LanguageModel) -> LanguageModel | None:
        """Return a model of this place with whole weights: of several processes the first gets it, on the CPU."""
        ...

    def everywhere(self, model: LanguageModel) -> LanguageModel:
        """Return a model of this place with the whole weights of this moment in every process, to play with."""
        ...


class OnePlace:
    """Everything in this process."""

    muon = torch.optim.Muon

    def passes(self, rows: Sequence[Row], batches: Callable[[Sequence[Row]], list[list[Row]]]) -> list[list[Row]]:
        return batches(rows)

    def run(self, work: Callable[[], T]) -> T:
        return work()

    def together(self, thing: T) -> list[T]:
        return [thing]

    def norm(self, parameters: Sequence[Tensor]) -> float:
        return float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))

    def scale(self, parameters: Sequence[Tensor], limit: float, norm: float) -> None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(norm))

    def spread(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def whole(self, model: LanguageModel) -> LanguageModel | None:
        return model

    def everywhere(self, model: LanguageModel) -> LanguageModel:
        return model


HERE: Placement = OnePlace()


def deal(rows: Sequence[Row], places: int) -> list[list[Row]]:
    """Return the rows of each place: the longest first, each to the place with the fewest tokens so far."""
    loads, dealt = [0] * places, [list[int]() for _ in range(places)]
    for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i].token_ids), i)):
        place = loads.index(min(loads))
        loads[place] += len(rows[index].token_ids)
        dealt[place].append(index)
    return [[rows[i] for i in sorted(part)] for part in dealt]


def merged(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what each process found by row origin, as one table."""
    return {origin: values for table in tables for origin, values in table.items()}
