"""The engine of many processes: weights, gradients and moments lie in shards (FSDP2), rows are dealt out by length.

N_c is worked out from all rows before they are dealt, and gradients are summed, not averaged, so loss and gradient are
those of one process whatever the number of processes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from envrl import ranks
from envrl.config.schema import Config
from envrl.engine.local import LocalEngine, Placed
from envrl.engine.optimizer import Optimizer, adamw
from envrl.engine.placement import deal
from envrl.engine.update import OldLogprobs, precision_context
from envrl.errors import UserError
from envrl.models.adapters import has_adapter
from envrl.models.load import LanguageModel, load_policy
from envrl.models.rows import runs_as_tree
from envrl.rollout.sampler import TakesWeights
from envrl.types import Row

T = TypeVar("T")


class Shards(nn.Module):
    """A model in shards, and the placement of its rows; see `Placement`.

    Whatever reads weights runs inside this module's forward pass, which is when they are whole: layer by layer, the
    embedding, the output and the heads from its beginning to the end of the backward pass.
    """

    def __init__(self, model: LanguageModel, mesh: DeviceMesh, precision: str) -> None:
        super().__init__()
        self.network, self.heads = model.network, model.heads
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


class ShardedEngine:
    """Turns an update's rows into optimiser steps of several processes; see `Engine`.

    The model that it is made with stays whole, on every process: it plays, is evaluated and saved. After each step it
    is given the weights that were learned.
    """

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        optimizer: Optimizer,
        run: Path,
        poll: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        kl = config.objective.kl_weight > 0
        if kl and has_adapter(model.network):
            raise UserError(
                "train.engine = 'sharded' cannot keep KL to the start of an adapter yet: set objective.kl_weight = 0, "
                "or model.lora_rank = 0"
            )
        self.whole, precision = model, config.train.precision
        mesh = init_device_mesh(model.device.type, (ranks.count(),))
        mine = LanguageModel(copy.deepcopy(model.network), model.codec, copy.deepcopy(model.heads))
        shards, reference = Shards(mine, mesh, precision), None
        if kl:
            start = load_policy(run / "warm_start", config)
            reference = Placed(start, Shards(start, mesh, precision))
        self._optimizer = _sharded(optimizer, mine, config, mesh)
        # One process alone must not leave an update: the loop asks all of them between two.
        self._inner = LocalEngine(config, mine, self._optimizer, run, lambda: None, say, shards, reference)

    @property
    def skips(self) -> int:
        return self._inner.skips

    @skips.setter
    def skips(self, count: int) -> None:
        self._inner.skips = count

    @property
    def micro_batch_tokens(self) -> int:
        """The token budget of a pass, in each process."""
        return self._inner.micro_batch_tokens

    def step(self, rows: Sequence[Row], weights: Mapping[str, float], update: int) -> dict[str, float]:
        """Take the update's optimiser steps, and give the whole model the new weights; return the metrics."""
        figures = self._inner.step(rows, weights, update)
        self._gather()
        return figures

    def logprobs(self, rows: Sequence[Row]) -> OldLogprobs:
        """Return the log-probs of every row's policy tokens, by row origin."""
        return self._inner.logprobs(rows)

    def values(self, rows: Sequence[Row], component: str) -> OldLogprobs:
        """Return what the head of a component gives for the state before each of its tokens, by row origin."""
        return self._inner.values(rows, component)

    def publish(self, sampler: TakesWeights, version: int) -> None:
        """Give a sampler the present weights."""
        sampler.load(self.whole.named_parameters(), version)

    def state(self) -> dict[str, Tensor]:
        """Return moments and step counts, whole and on the CPU, to the first of all processes; the others get none.

        One is made whole at a time: together they would take 8 bytes a parameter on every device.
        """
        found: dict[str, Tensor] = {}
        for name, value in self._optimizer.tensors().items():
            tensor = whole(value)
            if ranks.is_first():
                found[name] = tensor.cpu()
        return found

    @torch.no_grad()
    def _gather(self) -> None:
        for mine, shard in zip(self.whole.parameters(), self._inner.model.parameters(), strict=True):
            if shard.requires_grad:
                mine.copy_(whole(shard))


def whole(value: Tensor) -> Tensor:
    """Return a tensor that lies in shards as one; any other as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _sharded(optimizer: Optimizer, model: LanguageModel, config: Config, mesh: DeviceMesh) -> Optimizer:
    """Return AdamW over a model's shards, with the moments of one over the whole."""
    made = adamw(model, config.train.learning_rate, config.train.weight_decay)
    known = optimizer.tensors()
    made.restore({name: distribute_tensor(t, mesh, [Shard(0)]) if t.ndim else t for name, t in known.items()})
    optimizer.forget()  # whole, they would take as much again on every process
    return made
