"""EnvRL's auxiliary losses in verl: a policy loss for its registry, and rows for its batches (verl 0.9.1).

verl trains on samples of prompt and response. An auxiliary row is one more sample whose response mask is 0, so that
verl's own terms and their denominators do not know it. Where a token is predicted, `old_log_probs` holds `PREDICTED`,
which no log-prob is, and `advantages` holds λ_c w / N_c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from envrl.errors import UserError
from envrl.stacks.loss import predicted
from envrl.stacks.rows import AuxiliaryRow, Episode, Objective, auxiliary_rows

LOSS = "envrl"
"""The name in `actor.policy_loss.loss_mode`."""
PREDICTED = 1.0
_READ = (
    *("prompts", "responses", "input_ids", "attention_mask", "position_ids", "response_mask"),
    *("old_log_probs", "advantages", "ref_log_prob", "rollout_is_weights"),
)
"""What verl's actor reads of a batch."""


def policy_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
    *,
    base: Callable[..., tuple[Tensor, dict[str, Any]]],
) -> tuple[Tensor, dict[str, Any]]:
    """Return verl's policy loss `base` plus − Σ (λ_c w / N_c) log p over the predicted tokens, and the metrics.

    All tensors are (samples, response tokens); the arguments are those of `verl.trainer.ppo.core_algos.PolicyLossFn`.
    The sum is multiplied by the number of data-parallel ranks, over which verl takes the mean.
    """
    marked = old_log_prob > 0
    loss, metrics = base(
        old_log_prob=old_log_prob.masked_fill(marked, 0.0),
        log_prob=log_prob,
        advantages=advantages.masked_fill(marked, 0.0),
        response_mask=response_mask,
        loss_agg_mode=loss_agg_mode,
        config=config,
        rollout_is_weights=rollout_is_weights,
    )
    ranks = config.global_batch_info.get("dp_size", 1)
    auxiliary = -(advantages * log_prob).masked_fill(~marked, 0.0).sum() * ranks
    return loss + auxiliary, {**metrics, "actor/auxiliary": auxiliary.detach().item()}


def with_rows(
    batch: Mapping[str, Tensor],
    rows: Mapping[str, Sequence[AuxiliaryRow]],
    weights: Mapping[str, float],
    pad: int,
    *,
    multiple: int = 1,
    steps: int = 1,
) -> dict[str, Tensor]:
    """Return verl's padded batch (prompts on the left, responses on the right) with auxiliary rows among its samples.

    `weights` are the objectives' λ(t). The batch is filled up to a `multiple` of samples. With several optimiser
    `steps`, each gets its share of the rows, and N_c is the mean share of the objective's predicted tokens.
    """
    batch = {name: value for name, value in batch.items() if name in _READ}
    values = {name: weights[name] * steps / max(predicted(some), 1) for name, some in rows.items()}
    told = [(row, values[name] * row.weight) for name, some in rows.items() if weights[name] for row in some]
    if not told:
        return batch
    own = len(batch["responses"])
    told += [(told[0][0], 0.0)] * (-(own + len(told)) % multiple)
    starts = [row.loss_mask.index(1) for row, _ in told]
    ends = [len(row.token_ids) - start for (row, _), start in zip(told, starts, strict=True)]
    widths = {
        "prompts": max(batch["prompts"].shape[1], *starts),
        "responses": max(batch["responses"].shape[1], *ends),
    }
    samples = [_sample(row, value, start, widths, pad) for (row, value), start in zip(told, starts, strict=True)]
    wide = {name: _widened(name, value, batch, widths, pad) for name, value in batch.items()}
    more = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    zero = {name: value.new_zeros((len(told), *value.shape[1:])) for name, value in wide.items() if name not in more}
    ranks = [(n + 0.5) / own for n in range(own)] + [(n + 0.5) / len(told) for n in range(len(told))]
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    return {name: torch.cat([value, (more | zero)[name].to(value)])[order] for name, value in wide.items()}


def _sample(row: AuxiliaryRow, value: float, start: int, widths: Mapping[str, int], pad: int) -> dict[str, Tensor]:
    """Return a row as a sample whose response begins at its first predicted token; each of these weighs `value`."""
    left, right = widths["prompts"] - start, widths["responses"] - (len(row.token_ids) - start)
    ids = torch.tensor([*[pad] * left, *row.token_ids, *[pad] * right])
    present = torch.tensor([0] * left + [1] * len(row.token_ids) + [0] * right)
    marks = torch.tensor([*row.loss_mask[start:], *[0] * right], dtype=torch.float32)
    return {
        "prompts": ids[: widths["prompts"]],
        "responses": ids[widths["prompts"] :],
        "input_ids": ids,
        "attention_mask": present,
        "position_ids": (present.cumsum(0) - 1).clamp(min=0),
        "old_log_probs": marks * PREDICTED if value else marks * 0,
        "advantages": marks * value,
    }


def _widened(name: str, value: Tensor, batch: Mapping[str, Tensor], widths: Mapping[str, int], pad: int) -> Tensor:
    """Return a tensor of the batch with room for longer prompts on the left and longer responses on the right."""
    left, right = (widths[part] - batch[part].shape[1] for part in ("prompts", "responses"))
    whole = name in ("input_ids", "attention_mask", "position_ids")
    sides = (left * (whole or name == "prompts"), right * (whole or name != "prompts"))
    fill = pad if name in ("prompts", "responses", "input_ids") else 0
    return torch.nn.functional.pad(value, sides, value=fill)


def of_field(trainer: Any, batch: Any) -> list[Episode]:
    """Return the field `episode` of each sample, which an agent loop puts into its `extra_fields`."""
    if "episode" not in batch.non_tensor_batch:
        raise UserError("the samples have no field 'episode': set it in extra_fields of your agent loop's output")
    return list(batch.non_tensor_batch["episode"])


def install(
    auxiliary: Mapping[str, Objective],
    *,
    base: str = "vanilla",
    episodes: Callable[[Any, Any], Sequence[Episode]] = of_field,
) -> None:
    """Have verl's `RayPPOTrainer` (trainer.use_v1=False) learn these objectives beside its policy loss `base`.

    Called in a module that VERL_USE_EXTERNAL_MODULES names, so that every process of a run knows the loss "envrl".
    `episodes(trainer, batch)` returns the episodes of an update as text.
    """
    core = import_module("verl.trainer.ppo.core_algos")
    core.register_policy_loss(LOSS)(partial(policy_loss, base=core.get_policy_loss_fn(base)))
    trainer = import_module("verl.trainer.ppo.ray_trainer").RayPPOTrainer
    trainer._update_actor = with_auxiliary(trainer._update_actor, auxiliary, episodes)


def with_auxiliary(
    update_actor: Callable[[Any, Any], Any],
    auxiliary: Mapping[str, Objective],
    episodes: Callable[[Any, Any], Sequence[Episode]] = of_field,
) -> Callable[[Any, Any], Any]:
    """Return verl's `RayPPOTrainer._update_actor` with auxiliary rows among the samples of every optimiser step."""

    @wraps(update_actor)
    def updated(self: Any, batch: Any) -> Any:
        actor, count = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.rollout.n
        _check(actor)
        time, total = self.global_steps - 1, self.total_training_steps
        weights = {name: each.weight_at(time, total) for name, each in auxiliary.items()}
        played = episodes(self, batch)
        rows = {
            name: auxiliary_rows(name, played, self.tokenizer, **{"seed": time, **each.rows})
            for name, each in auxiliary.items()
            if weights[name]
        }
        before = actor.ppo_mini_batch_size
        steps = max(1, len(batch) // (before * count))
        whole = steps * count * self.actor_rollout_wg.world_size
        pad = self.tokenizer.pad_token_id
        tensors = with_rows(dict(batch.batch), rows, weights, pad, multiple=whole, steps=steps)
        actor.ppo_mini_batch_size = len(tensors["responses"]) // (steps * count)
        try:
            return update_actor(self, type(batch).from_dict(tensors=tensors, meta_info=batch.meta_info))
        finally:
            actor.ppo_mini_batch_size = before

    return updated


def _check(actor: Any) -> None:
    """Raise `UserError` where the actor's settings do not go with auxiliary rows."""
    if actor.policy_loss.loss_mode != LOSS:
        raise UserError(f"auxiliary losses need actor_rollout_ref.actor.policy_loss.loss_mode={LOSS}")
    if actor.loss_agg_mode != "token-mean":
        raise UserError(
            f"auxiliary rows are samples, which loss_agg_mode={actor.loss_agg_mode} would count: take token-mean"
        )
