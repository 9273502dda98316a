"""The token budget of micro-batches, halved if memory runs out. The gradient does not depend on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from envrl import ranks
from envrl.engine.loss_settings import LossSettings
from envrl.errors import MemoryShort, RunError
from envrl.models.out_of_memory import OutOfMemory, release_memory

T = TypeVar("T")

ADVICE = (
    "lower rollout.response_tokens, rollout.history or env.max_steps, set train.checkpointing = true, train an adapter "
    "(model.lora_rank), or take a smaller model"
)


class Budget:
    """The token budget, at first `train.micro_batch_tokens`; once lowered it stays so for the rest of the process."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.limit: int | None = int(os.environ.get(ranks.BUDGET, "0")) or None

    def tokens(self, settings: LossSettings) -> int:
        """Return the current budget."""
        return settings.micro_batch_tokens if self.limit is None else min(self.limit, settings.micro_batch_tokens)

    def run(
        self,
        name: str,
        settings: LossSettings,
        work: Callable[[LossSettings], T],
        undo: Callable[[], None] = lambda: None,
    ) -> T:
        """Return the result of `work`; each time memory runs out, call `undo`, halve the budget and try again.

        Raises `RunError` if a micro-batch of a single row does not fit in memory.
        """
        while True:
            budget = self.tokens(settings)
            try:
                return work(replace(settings, micro_batch_tokens=budget))
            except OutOfMemory as error:
                rows, longest = error.parts, error.tokens
            undo()
            release_memory()
            if rows <= 1 or budget <= 1:
                raise RunError(
                    f"memory ran out in {name} on a single row of {longest} tokens; the weights are untouched and the "
                    f"last checkpoint is kept: {ADVICE}"
                )
            if ranks.count() > 1:  # the others are inside a pass that this process has left
                raise MemoryShort(
                    f"{name}: memory ran out in process {ranks.number()} of {ranks.count()} on {rows} rows of at most "
                    f"{longest} tokens; the last checkpoint is kept: go on from it with half the token budget, "
                    f"{ranks.BUDGET}={budget // 2} in the environment and --resume"
                )
            self.limit = budget // 2
            self.say(
                f"{name}: memory ran out on {rows} rows of at most {longest} tokens; the step is done again with "
                f"train.micro_batch_tokens = {self.limit}, which stays"
            )
