"""A model in shards (FSDP2): each process holds a part of every weight, gradient and moment, and runs some rows.

Gradients are summed, not averaged, so loss and gradient are those of one process whatever the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from envrl import ranks
from envrl.engine.placement import deal
from envrl.engine.update import precision_context
from envrl.models.copies import with_weights
from envrl.models.load import LanguageModel
from envrl.models.rows import runs_as_tree
from envrl.types import Row

T = TypeVar("T")


class MuonOfShards(torch.optim.Muon):
    """Muon of matrices in shards: each is whole in every process while it is changed, one after the other."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for shard in (each for each in group["params"] if each.grad is not None):
                matrix = nn.Parameter(whole(shard))
                matrix.grad = whole(shard.grad)
                alone = torch.optim.Muon([matrix], **{name: group[name] for name in self.defaults})
                alone.state[matrix] |= {name: whole(held) for name, held in self.state[shard].items()}
                alone.step()
                shard.copy_(_share(matrix, shard))
                self.state[shard] = {name: _share(held, shard) for name, held in alone.state[matrix].items()}


class Shards(nn.Module):
    """A model in shards, and the placement of its rows; see `Placement`.

    Whatever reads weights runs inside this module's forward pass, which is when they are whole: layer by layer, the
    embedding, the output and the heads from its beginning to the end of the backward pass.
    """

    muon = MuonOfShards

    def __init__(self, model: LanguageModel, precision: str) -> None:
        """The model's own weights are taken apart: from now on it runs inside `run` alone."""
        super().__init__()
        self.network, self.heads = model.network, model.heads
        self._mesh = mesh = init_device_mesh(model.device.type, (ranks.count(),))
        self._shell = with_weights(model, lambda _, own: torch.empty_like(own, device="meta"))
        with precision_context(precision, model.device):
            runs_as_tree(model.network)  # tried while the weights are whole
        layers = cast("list[nn.Module]", getattr(model.network.get_decoder(), "layers", []))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self, mesh=mesh, reshard_after_forward=False)
        for part in self.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)  # gloo has no other

    def forward(self, work: Callable[[], T]) -> T:
        found = work()
        # Gradients are summed, so each process must have one for the same weights.
        if torch.is_grad_enabled() and isinstance(found, Tensor):
            found = found + 0.0 * sum(weight.flatten()[0] for weight in self._perhaps_unused())
        return cast(T, found)

    def _perhaps_unused(self) -> list[Tensor]:
        """Return the trained weights that the rows of one process may use and those of another may not."""
        output = self.network.get_output_embeddings()
        tied = output is None or output.weight is self.network.get_input_embeddings().weight
        weights = [*self.heads.parameters(), *([] if tied or output is None else output.parameters())]
        return [weight for weight in weights if weight.requires_grad]

    def passes(self, rows: Sequence[Row], batches: Callable[[Sequence[Row]], list[list[Row]]]) -> list[list[Row]]:
        mine = batches(deal(rows, ranks.count())[ranks.number()])
        return mine + [[]] * (max(ranks.gather(len(mine))) - len(mine))

    def run(self, work: Callable[[], T]) -> T:
        found = self(work)
        if not torch.is_grad_enabled():  # else the backward pass does: the next step's weights are others
            cast(FSDPModule, self).reshard()
        return found

    def together(self, thing: T) -> list[T]:
        return ranks.gather(thing)

    def norm(self, parameters: Sequence[Tensor]) -> float:
        gradients = [p.grad for p in parameters if p.grad is not None]
        return float(cast(DTensor, torch.nn.utils.get_total_norm(gradients)).full_tensor())

    def scale(self, parameters: Sequence[Tensor], limit: float, norm: float) -> None:
        parts = [cast(DTensor, p.grad).to_local() for p in parameters if p.grad is not None]
        factor = torch.clamp(limit / (torch.tensor(norm) + 1e-6), max=1.0)
        for part in parts:
            part.mul_(factor.to(part.device))

    def spread(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: distribute_tensor(t, self._mesh, [Shard(0)]) if t.ndim else t for name, t in tensors.items()}

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One is made whole at a time: together they would take as much on every device as without shards."""
        found: dict[str, Tensor] = {}
        for name, value in tensors.items():
            tensor = whole(value)
            if ranks.is_first():
                found[name] = tensor.detach().cpu()
        return found

    def whole(self, model: LanguageModel) -> LanguageModel | None:
        weights = self.gathered(dict(model.named_parameters()))
        return with_weights(self._shell, lambda name, _: weights[name]) if ranks.is_first() else None

    def everywhere(self, model: LanguageModel) -> LanguageModel:
        weights = dict(model.named_parameters())
        return with_weights(self._shell, lambda name, _: whole(weights[name]).detach())


def whole(value: Tensor) -> Tensor:
    """Return a tensor that lies in shards as one; any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _share(value: Tensor, like: DTensor) -> Tensor:
    """Return this process's part of a tensor that all of them have, in shards as another one."""
    return distribute_tensor(value.detach(), like.device_mesh, like.placements, src_data_rank=None)
