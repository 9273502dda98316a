"""The engine of many processes: weights, gradients and moments lie in shards, rows are dealt out by length.

N_c is worked out from all rows before they are dealt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from envrl.config.schema import Config
from envrl.engine.local import LocalEngine, Placed
from envrl.engine.loss_settings import OldLogprobs, Regularizer
from envrl.engine.optimizer import Optimizer, policy_optimizer
from envrl.engine.shards import Shards, whole
from envrl.engine.taught_part import load_teachers
from envrl.models.adapters import has_adapter
from envrl.models.copies import with_weights
from envrl.models.load import LanguageModel, load_policy
from envrl.rollout.sampler import TakesWeights
from envrl.types import Row


class ShardedEngine:
    """Turns an update's rows into optimiser steps of several processes; see `Engine`.

    The model that it is made with is whole, on every process, to play, to be evaluated and saved. Its weights are put
    away while a step is taken, which needs the memory, and gathered again after it.
    """

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        optimizer: Optimizer,
        run: Path,
        poll: Callable[[], None],
        say: Callable[[str], None],
        regularizers: Mapping[str, Regularizer] = MappingProxyType({}),
    ) -> None:
        self.whole, precision = model, config.train.precision
        mine = with_weights(model, lambda _, own: own.detach())  # what FSDP keeps of a weight is a copy of its part
        self._shards, reference = Shards(mine, precision), None
        self._put_away()
        if config.objective.kl_weight > 0 and not has_adapter(model.network):
            start = load_policy(run / "warm_start", config)
            reference = Placed(start, Shards(start, precision))
        loaded = load_teachers(config, model.codec, model.context)
        teachers = {name: Placed(teacher, Shards(teacher, precision)) for name, teacher in loaded.items()}
        self._optimizer = policy_optimizer(mine, config.train)
        self._optimizer.restore(self._shards.spread(optimizer.tensors()))
        optimizer.forget()  # whole, they would take as much again on every process
        # One process alone must not leave an update: the loop asks all of them between two.
        self._inner = LocalEngine(
            config, mine, self._optimizer, run, lambda: None, say, self._shards, reference, regularizers, teachers
        )
        self._gather()

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
        self._put_away()
        figures = self._inner.step(rows, weights, update)
        self._gather()
        return figures

    def logprobs(self, rows: Sequence[Row]) -> OldLogprobs:
        """Return the log-probs of every row's policy tokens, by row origin."""
        return self._inner.logprobs(rows)

    def reference_logprobs(self, rows: Sequence[Row]) -> OldLogprobs:
        """Return the log-probs of every row's policy tokens under the model that RL started from, by row origin."""
        return self._inner.reference_logprobs(rows)

    def teacher_logprobs(self, teacher: str, rows: Sequence[Row]) -> OldLogprobs:
        """Return the log-probs of every row's policy tokens under a teacher of the recipe, by row origin."""
        return self._inner.teacher_logprobs(teacher, rows)

    def values(self, rows: Sequence[Row], component: str) -> OldLogprobs:
        """Return what the head of a component gives for the state before each of its tokens, by row origin."""
        return self._inner.values(rows, component)

    def publish(self, sampler: TakesWeights, version: int) -> None:
        """Give a sampler the present weights."""
        sampler.load(self.whole.named_parameters(), version)

    def state(self) -> dict[str, Tensor]:
        """Return moments and step counts, whole and on the CPU, to the first of all processes; the others get none."""
        return self._shards.gathered(self._optimizer.tensors())

    def _put_away(self) -> None:
        for mine in self.whole.parameters():
            mine.data = mine.data.new_empty(0)

    @torch.no_grad()
    def _gather(self) -> None:
        for mine, shard in zip(self.whole.parameters(), self._inner.model.parameters(), strict=True):
            mine.data = whole(shard).contiguous()
