"""EnvRL's auxiliary losses in TRL's GRPO trainer (TRL 1.16.0)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import Tensor

from envrl.stacks.loss import auxiliary_loss, collate, predicted
from envrl.stacks.rows import AuxiliaryRow, Episode, Objective, auxiliary_rows

GRPOTrainer: Any = import_module("trl").GRPOTrainer  # pip install 'envrl[trl]'


def of_field(trainer: Any, inputs: Sequence[Mapping[str, Any]]) -> list[Episode]:
    """Return the `episode` of each input, which a `rollout_func` returns beside the ids."""
    return [each["episode"] for each in inputs]


class AuxiliaryGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` with L = L_GRPO + Σ_c λ_c(t) L_c, c of `auxiliary` ("state", "inverse", …).

    L_c is the mean over the target tokens of an optimiser step's rows, however it is accumulated. `episodes` returns
    the episodes that were just played, as text; the rows of an optimiser step are those of its generation's share.
    Logs `loss/NAME` and `weight/NAME`.
    """

    def __init__(
        self,
        *args: Any,
        auxiliary: Mapping[str, Objective],
        episodes: Callable[[Any, Sequence[Mapping[str, Any]]], Sequence[Episode]] = of_field,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._auxiliary, self._episodes = auxiliary, episodes
        self._rows: list[dict[str, list[AuxiliaryRow]]] = []  # of each micro-batch of a generation

    def _calculate_rewards(self, inputs: Any, *args: Any) -> Tensor:
        if self.model.training:
            played, parts = self._episodes(self, inputs), self.args.steps_per_generation
            made = {
                name: auxiliary_rows(name, played, self._tokenizer, **{"seed": self._step, **each.rows})
                for name, each in self._auxiliary.items()
            }
            self._rows = [{name: rows[part::parts] for name, rows in made.items()} for part in range(parts)]
        return super()._calculate_rewards(inputs, *args)

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        for name, each in self._auxiliary.items() if self.model.training else ():
            weight = each.weight_at(self.state.global_step, self.state.max_steps)
            self._metrics["train"][f"weight/{name}"].append(weight)
            loss = loss + weight * self._auxiliary_part(model, name) if weight else loss
        return loss

    def _auxiliary_part(self, model: Any, name: str) -> Tensor | float:
        """Return what the rows of this micro-batch add to an objective's mean over the optimiser step."""
        parts, steps = len(self._rows), self.current_gradient_accumulation_steps
        here, size = self._step % parts, steps if parts % steps == 0 else parts
        first = here - here % size
        rows = self._rows[here][name]
        count = sum(predicted(some[name]) for some in self._rows[first : first + size]) * steps / size
        if not rows:
            return 0.0
        batch = collate(rows, self._tokenizer.pad_token_id, self.accelerator.device)
        with self.accelerator.autocast():
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        part = auxiliary_loss(logits, batch, count)
        self._metrics["train"][f"loss/{name}"].append(part.item() * steps)  # logged is the mean over micro-batches
        return part
