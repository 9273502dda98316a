"""The loss and gradient of one optimiser step, computed from rows; independent of the algorithm.

loss = Σ_c  λ_c · ( Σ_tokens w · ℓ_c ) / N_c
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from envrl.engine.loss_settings import LossSettings, OldLogprobs, Totals
from envrl.engine.placement import HERE, Placement, merged
from envrl.engine.policy_part import POLICY_LOSSES, policy_part, row_numbers, stream, told_beforehand
from envrl.engine.retry_part import retry_part
from envrl.engine.taught_part import is_taught, taught_part
from envrl.models.heads import values_of
from envrl.models.load import LanguageModel
from envrl.models.out_of_memory import counted_memory
from envrl.models.rows import RowStates, runs_as_tree, states_of_rows
from envrl.models.scores import TokenScores, score_tokens
from envrl.rendering.kinds import TOKEN_KINDS
from envrl.samples.packing import denominators, pack
from envrl.types import IntArray, LossTerm, Ragged, Row


def precision_context(precision: str, device: torch.device) -> torch.autocast | nullcontext[None]:
    """Return the autocast context of the network: bf16 products over fp32 weights, or plain fp32.

    Each weight is used once per pass, so a cache of bf16 copies would only cost memory.
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def score_terms(
    model: LanguageModel, rows: Sequence[Row], component: str, states: RowStates, temperature: float, precision: str
) -> TokenScores:
    """Return the scores of all tokens that `component` predicts in these rows, row by row."""
    terms = [(number, term) for number, row in enumerate(rows) for term in row.terms if term.component == component]
    device = model.device
    row_index, positions = _places(rows, component, device)
    targets = torch.from_numpy(np.concatenate([_targets(rows[n], term) for n, term in terms]).astype(np.int64)).to(
        device
    )
    return score_tokens(
        model.network,
        states.at(row_index, positions - 1),
        targets,
        _allowed([term for _, term in terms]),
        temperature,
        bf16=precision == "bf16" and device.type == "cuda",
    )


def _targets(row: Row, term: LossTerm) -> IntArray:
    """Return the tokens that a term predicts: its `targets` if it has any, else the row's own."""
    return term.streams.get("targets", row.token_ids[term.positions_T])


_NO_IDS = np.zeros(0, dtype=np.int32)


def _allowed(terms: Sequence[LossTerm]) -> Ragged | None:
    """Return the allowed ids of all tokens of these terms, or None if no token is restricted."""
    if all(term.allowed is None for term in terms):
        return None
    lists = [term.allowed or Ragged(_NO_IDS, np.zeros(len(term.positions_T) + 1, dtype=np.int32)) for term in terms]
    counts = np.concatenate([[0], *(np.diff(each.offsets) for each in lists)])
    return Ragged(np.concatenate([each.values for each in lists]), counts.cumsum().astype(np.int32))


def _weights(rows: Sequence[Row], component: str, device: torch.device) -> Tensor:
    """Return the weights of the component's tokens in these rows, concatenated."""
    arrays = [term.weights_T for row in rows for term in row.terms if term.component == component]
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def asked_tokens(rows: Sequence[Row]) -> list[IntArray]:
    """Return the positions in each row whose hidden states its terms read: those before the predicted tokens."""
    return [np.concatenate([_NO_IDS, *(term.positions_T - 1 for term in row.terms)]) for row in rows]


def micro_loss(
    model: LanguageModel,
    rows: Sequence[Row],
    totals: Totals,
    denominator: Mapping[str, float],
    settings: LossSettings,
    old: OldLogprobs | None = None,
    reference: OldLogprobs | None = None,
    counts: bool = True,
) -> Tensor:
    """Return a micro-batch's part of the loss, and add its metrics to `totals`.

    Where it does not count (a process with nothing to do keeps step with the others) the loss is 0 of every parameter.
    """
    device = model.device
    with precision_context(settings.precision, device):
        states = states_of_rows(
            model.network,
            [row.token_ids for row in rows],
            model.codec.pad,
            asked=asked_tokens(rows),
            checkpointing=settings.checkpointing,
        )
    totals.tokens += sum(len(row.token_ids) for row in rows)
    loss = states.states.new_zeros((), dtype=torch.promote_types(states.states.dtype, torch.float32))
    for component in dict.fromkeys(term.component for row in rows for term in row.terms):
        weight = settings.weights.get(component, 0.0)
        weights_N = _weights(rows, component, device) / denominator[component]
        if component in model.heads:
            loss = loss + weight * _head_part(model, rows, component, states, weights_N, totals)
        elif component in POLICY_LOSSES:
            scores = score_terms(model, rows, component, states, settings.temperature, settings.precision)
            loss = loss + policy_part(rows, component, scores, weights_N, totals, settings, old, reference)
        elif component == "retry":
            scores = score_terms(model, rows, component, states, settings.temperature, settings.precision)
            loss = loss + weight * retry_part(rows, scores, weights_N, totals)
        elif is_taught(rows, component):
            scores = score_terms(model, rows, component, states, settings.temperature, settings.precision)
            loss = loss + weight * taught_part(rows, component, scores, weights_N, totals)
        else:
            losses_N = -score_terms(model, rows, component, states, 1.0, settings.precision).logprobs
            _count_kinds(rows, component, losses_N, totals)
            if own := settings.auxiliary_losses.get(component):
                losses_N = own(-losses_N, row_numbers(rows, component, device))
            loss = loss + weight * (weights_N * losses_N).sum()
            totals.add(f"loss/{component}", losses_N)
    return loss if counts else 0.0 * loss


def _count_kinds(rows: Sequence[Row], component: str, nll_N: Tensor, totals: Totals) -> None:
    """Add the component's cross-entropy by kind of token, if its terms say of what kind each token is."""
    terms = [term for row in rows for term in row.terms if term.component == component]
    if not all("kinds" in term.streams for term in terms):
        return
    kinds_N = np.concatenate([term.streams["kinds"] for term in terms])
    index_N = torch.from_numpy(kinds_N.astype(np.int64)).to(nll_N.device)
    sums_K = nll_N.new_zeros(len(TOKEN_KINDS), dtype=torch.float64).index_add(0, index_N, nll_N.detach().double())
    for kind, count in enumerate(np.bincount(kinds_N, minlength=len(TOKEN_KINDS)).tolist()):
        if count:
            totals.add(f"nll/{component}/{TOKEN_KINDS[kind]}", sums_K[kind], count)


def _head_part(
    model: LanguageModel,
    rows: Sequence[Row],
    component: str,
    states: RowStates,
    weights_N: Tensor,
    totals: Totals,
) -> Tensor:
    """Return a head's part of the loss, Σ w (v − R)², with v the head's value before each token and R its return."""
    row_N, positions_N = _places(rows, component, model.device)
    values = values_of(model.heads[component], states.at(row_N, positions_N - 1))
    losses = (values - stream(rows, component, "returns", model.device)).square()
    totals.add(f"loss/{component}", losses)
    return (weights_N * losses).sum()


def _places(rows: Sequence[Row], component: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the index in `rows` of each of the component's tokens, and its position in that row."""
    terms = [(number, term) for number, row in enumerate(rows) for term in row.terms if term.component == component]
    row_index = np.repeat([number for number, _ in terms], [len(term.positions_T) for _, term in terms])
    positions = np.concatenate([term.positions_T for _, term in terms]).astype(np.int64)
    return torch.from_numpy(row_index).to(device), torch.from_numpy(positions).to(device)


def micro_batches(model: LanguageModel, rows: Sequence[Row], settings: LossSettings) -> list[list[Row]]:
    """Return the rows in micro-batches; padding counts toward the token budget if the model needs it."""
    with precision_context(settings.precision, model.device):
        padded = not runs_as_tree(model.network)
    return pack(rows, settings.micro_batch_tokens, padded=padded)


def policy_logprobs(
    model: LanguageModel, rows: Sequence[Row], settings: LossSettings, placement: Placement = HERE
) -> dict[str, np.ndarray]:
    """Return the log-probs of every row's policy tokens under this network, by row origin."""

    def logprobs(batch: list[Row], states: RowStates) -> Tensor:
        return score_terms(model, batch, "policy", states, settings.temperature, settings.precision).logprobs

    return _by_origin(model, rows, "policy", settings, logprobs, placement)


def policy_entropies(model: LanguageModel, rows: Sequence[Row], settings: LossSettings) -> dict[str, np.ndarray]:
    """Return the entropy (nats) of the distribution of every row's policy tokens under this network, by row origin."""

    def entropies(batch: list[Row], states: RowStates) -> Tensor:
        return score_terms(model, batch, "policy", states, settings.temperature, settings.precision).entropies

    return _by_origin(model, rows, "policy", settings, entropies, HERE)


def head_values(
    model: LanguageModel, rows: Sequence[Row], component: str, settings: LossSettings, placement: Placement = HERE
) -> dict[str, np.ndarray]:
    """Return the values of a component's head for the states before its tokens, by row origin."""

    def values(batch: list[Row], states: RowStates) -> Tensor:
        row_N, positions_N = _places(batch, component, model.device)
        return values_of(model.heads[component], states.at(row_N, positions_N - 1))

    return _by_origin(model, rows, component, settings, values, placement)


@torch.no_grad()
def _by_origin(
    model: LanguageModel,
    rows: Sequence[Row],
    component: str,
    settings: LossSettings,
    read: Callable[[list[Row], RowStates], Tensor],
    placement: Placement,
) -> dict[str, np.ndarray]:
    """Return the numbers that `read` computes from hidden states, one per token of the component, by row origin."""
    result: dict[str, np.ndarray] = {}
    asking = [
        replace(row, terms=terms) for row in rows if (terms := tuple(t for t in row.terms if t.component == component))
    ]
    shortest = [min(asking, key=lambda row: len(row.token_ids))] if asking else []
    for batch in placement.passes(asking, lambda some: micro_batches(model, some, settings)):
        run = batch or shortest
        with row_memory(run):
            found = placement.run(partial(_read, model, run, settings, read))
        if batch:
            ends = np.cumsum([len(row.terms[0].positions_T) for row in batch])
            result |= {row.origin: part for row, part in zip(batch, np.split(found, ends[:-1]), strict=True)}
    return merged(placement.together(result))


def _read(
    model: LanguageModel, batch: list[Row], settings: LossSettings, read: Callable[[list[Row], RowStates], Tensor]
) -> np.ndarray:
    with precision_context(settings.precision, model.device):
        ids = [row.token_ids for row in batch]
        states = states_of_rows(model.network, ids, model.codec.pad, asked=asked_tokens(batch))
    return read(batch, states).float().cpu().numpy()


def row_memory(rows: Sequence[Row]) -> AbstractContextManager[None]:
    """Return a context that turns a failed allocation into `OutOfMemory` with the number and size of these rows."""
    return counted_memory(len(rows), max(len(row.token_ids) for row in rows))


def accumulate(
    model: LanguageModel,
    rows: Sequence[Row],
    settings: LossSettings,
    old: OldLogprobs | None = None,
    reference: OldLogprobs | None = None,
    poll: Callable[[], None] = lambda: None,
    placement: Placement = HERE,
) -> tuple[Totals, float]:
    """Accumulate the gradient of the step's loss over micro-batches; return the metric sums and the loss.

    The gradient depends neither on the size of the micro-batches nor on the number of processes: every term is divided
    by the whole step's N_c. Raises `OutOfMemory` if a micro-batch does not fit; the gradient of earlier ones stays.
    """
    totals, value = Totals(), 0.0
    rows = told_beforehand(rows, settings, old)
    denominator = denominators(rows)
    shortest = [min(rows, key=lambda row: len(row.token_ids))] if rows else []
    for batch in placement.passes(rows, lambda some: micro_batches(model, some, settings)):
        poll()
        run, counted = (batch, totals) if batch else (shortest, Totals())
        with row_memory(run):
            loss = placement.run(
                partial(micro_loss, model, run, counted, denominator, settings, old, reference, bool(batch))
            )
            loss.backward()
            value += float(loss.detach())
    parts = placement.together((totals.plain(), value))
    if len(parts) > 1:
        totals = Totals()
        for part, _ in parts:
            totals.include(part)
    return totals, math.fsum(part for _, part in parts)


def clip_gradient(parameters: Sequence[Tensor], limit: float, placement: Placement = HERE) -> float:
    """Scale the gradient down to a norm of `limit`; return the norm before, not finite where any entry is not."""
    norm = placement.norm(parameters)
    if math.isfinite(norm):
        placement.scale(parameters, limit, norm)
    return norm
