"""The loss and gradient of one optimiser step, computed from rows; independent of the algorithm.

loss = Σ_c  λ_c · ( Σ_tokens w · ℓ_c ) / N_c
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from envrl.engine.placement import HERE, Placement, merged
from envrl.engine.token_losses import AuxiliaryLoss
from envrl.models.heads import values_of
from envrl.models.load import LanguageModel
from envrl.models.out_of_memory import counted_memory
from envrl.models.rows import RowStates, runs_as_tree, states_of_rows
from envrl.models.scores import TokenScores, score_tokens
from envrl.objective.losses.kl import KL_LOSSES
from envrl.objective.policy import TOKEN_LOSSES, importance_ratio, stale_importance, truncated_importance
from envrl.objective.regularizers.tokens import PolicyTokens
from envrl.randomness import key_of
from envrl.rendering.kinds import TOKEN_KINDS
from envrl.samples.packing import denominators, pack
from envrl.types import IntArray, LossTerm, Ragged, Row

Regularizer = Callable[[PolicyTokens], Tensor]
"""Returns a loss for each of the policy's tokens."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The settings of the loss; `weights` are the λ_c (the entropy is subtracted from the loss, all else is added)."""

    weights: Mapping[str, float]
    policy_loss: str = "ppo"
    knobs: Mapping[str, float | None] = field(default_factory=dict)
    kl_estimator: str = "k3"
    temperature: float = 1.0
    precision: str = "fp32"
    micro_batch_tokens: int = 16384
    checkpointing: bool = False
    importance_cap: float = 0.0
    """Cap of a token's importance weight (`truncated_importance`, `stale_importance`); 0: no importance weights."""
    importance_mask: float = 0.0
    """Factor by which a token's probability may differ from the sampled one for it to learn; 0: any."""
    auxiliary_losses: Mapping[str, AuxiliaryLoss] = field(default_factory=dict)
    """Losses of tokens by component, of those whose loss is not the cross-entropy."""
    regularizers: Mapping[str, Regularizer] = field(default_factory=dict)
    """By name; each has its weight in `weights`."""
    key: int = 0
    """Seeds what a policy loss draws in this optimiser step."""


@dataclass(slots=True)
class Totals:
    """Sums over the tokens of an optimiser step, kept as tensors until the end."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    largest: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0

    def add(self, name: str, values: Tensor, count: int | None = None) -> None:
        """Add values to a sum, of `count` tokens if they are sums of several."""
        total = values.detach().double().sum()
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] += values.numel() if count is None else count

    def add_largest(self, name: str, values: Tensor) -> None:
        largest = values.detach().double().max()
        self.largest[name] = torch.maximum(self.largest[name], largest) if name in self.largest else largest

    def plain(self) -> Totals:
        """Return the same in numbers of Python's, to be sent to another process."""
        sums = {name: value.cpu() for name, value in self.sums.items()}
        largest = {name: value.cpu() for name, value in self.largest.items()}
        return Totals(sums, self.counts, largest, self.tokens)

    def include(self, other: Totals) -> None:
        """Add what another process counted."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] += other.counts[name]
        for name, value in other.largest.items():
            self.largest[name] = torch.maximum(self.largest[name], value) if name in self.largest else value
        self.tokens += other.tokens

    def mean(self, name: str) -> float:
        return float(self.sums[name]) / max(self.counts[name], 1)

    def figures(self) -> dict[str, float]:
        """Return the mean of every summed quantity and the maximum of every other one.

        Of the importance ratios ρ it is their effective sample size as a share of the tokens, (mean ρ)² / mean ρ².
        """
        means = {name: self.mean(name) for name in self.sums}
        if "ratio" in means:
            means["effective_sample_size"] = means.pop("ratio") ** 2 / means.pop("ratio_squared")
        return means | {name: float(x) for name, x in self.largest.items()}


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


def _stream(rows: Sequence[Row], component: str, name: str, device: torch.device) -> Tensor:
    """Return a stream of the component's terms in these rows, concatenated."""
    arrays = [term.streams[name] for row in rows for term in row.terms if term.component == component]
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def _weights(rows: Sequence[Row], component: str, device: torch.device) -> Tensor:
    """Return the weights of the component's tokens in these rows, concatenated."""
    arrays = [term.weights_T for row in rows for term in row.terms if term.component == component]
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def row_numbers(rows: Sequence[Row], component: str, device: torch.device) -> Tensor:
    """Return the row number (0, 1, …) of each of the component's tokens, counting only rows with the component."""
    counts = [len(t.positions_T) for row in rows for t in row.terms if t.component == component]
    return torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(device)


def asked_tokens(rows: Sequence[Row]) -> list[IntArray]:
    """Return the positions in each row whose hidden states its terms read: those before the predicted tokens."""
    return [np.concatenate([_NO_IDS, *(term.positions_T - 1 for term in row.terms)]) for row in rows]


OldLogprobs = Mapping[str, np.ndarray]
"""Log-probs of policy tokens by row origin, under the policy before the batch's first step or the reference model."""


POLICY_LOSSES = ("policy", "replay")
"""Components with the policy loss: episodes that the estimator judged, and those whose advantages a replay gave."""


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
            loss = loss + _policy_part(rows, component, scores, weights_N, totals, settings, old, reference)
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
    losses = (values - _stream(rows, component, "returns", model.device)).square()
    totals.add(f"loss/{component}", losses)
    return (weights_N * losses).sum()


def _places(rows: Sequence[Row], component: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the index in `rows` of each of the component's tokens, and its position in that row."""
    terms = [(number, term) for number, row in enumerate(rows) for term in row.terms if term.component == component]
    row_index = np.repeat([number for number, _ in terms], [len(term.positions_T) for _, term in terms])
    positions = np.concatenate([term.positions_T for _, term in terms]).astype(np.int64)
    return torch.from_numpy(row_index).to(device), torch.from_numpy(positions).to(device)


def _policy_part(
    rows: Sequence[Row],
    component: str,
    scores: TokenScores,
    weights_N: Tensor,
    totals: Totals,
    settings: LossSettings,
    old: OldLogprobs | None,
    reference: OldLogprobs | None,
) -> Tensor:
    """Return the policy loss of a component's tokens; only `policy` has the entropy bonus and KL.

    Figures of the ratios of stale tokens are counted over both components.
    """
    device, judged = scores.logprobs.device, component == "policy"
    prefix = "" if judged else f"{component}/"
    advantages = _stream(rows, component, "advantages", device)
    sampled = _stream(rows, component, "sampled_logprobs", device)
    current = scores.logprobs.detach()
    before, stale = _before(rows, component, current, old)
    policy_loss, row_N = TOKEN_LOSSES[settings.policy_loss], row_numbers(rows, component, device)
    told = _stream(rows, component, "told", device) if policy_loss.looks_beforehand else None
    losses, clipped = policy_loss(scores.logprobs, before, advantages, row_N, told, **settings.knobs)
    ratio = importance_ratio(before if stale is None else torch.where(stale, current, before), sampled)
    if settings.importance_cap:
        cap = settings.importance_cap
        importance = truncated_importance(before, sampled, cap)
        if stale is not None:
            weight_N = policy_loss.weight(current, before, advantages, row_N, **settings.knobs)
            importance = torch.where(stale, stale_importance(weight_N, cap), importance)
        losses = importance * losses
        totals.add("importance", importance)
        totals.add("importance_capped", (ratio > cap).float())
    if settings.importance_mask:
        kept = (ratio <= settings.importance_mask) & (ratio >= 1.0 / settings.importance_mask)
        losses = torch.where(kept, losses, 0.0)
        totals.add("importance_masked", (~kept).float())
    mismatch = before - sampled
    if stale is not None:
        totals.add("ratio", ratio[stale])
        totals.add("ratio_squared", ratio[stale].square())
        mismatch = mismatch[~stale]
    part = (weights_N * losses).sum() * settings.weights.get(component, 1.0)
    totals.add(f"loss/{component}", losses)
    totals.add(f"{prefix}clip_fraction", clipped.float())
    totals.add(f"{prefix}entropy", scores.entropies)
    if mismatch.numel():
        totals.add("sampler_mismatch", mismatch.abs())
        totals.add_largest("sampler_mismatch_max", mismatch.abs())
    if settings.weights.get("entropy") and judged:
        part = part - settings.weights["entropy"] * (weights_N * scores.entropies).sum()
    for name, regularizer in settings.regularizers.items() if judged else ():
        if weight := settings.weights.get(name, 0.0):
            penalties = regularizer(PolicyTokens(scores.logprobs, scores.entropies, row_N))
            part = part + weight * (weights_N * penalties).sum()
            totals.add(f"loss/{name}", penalties)
    if reference is not None and judged:
        rows_with_it = _rows_with(rows, component)
        kl = KL_LOSSES[settings.kl_estimator](scores.logprobs, _lookup(rows_with_it, reference, device))
        part = part + settings.weights["kl"] * (weights_N * kl).sum()
        totals.add("kl", kl)
    return part


def _before(
    rows: Sequence[Row], component: str, current: Tensor, old: OldLogprobs | None
) -> tuple[Tensor, Tensor | None]:
    """Return the old log-probs in the policy ratios, and which tokens an earlier policy played (None: no token).

    The old log-probs are those under the policy before the batch's first step. `current` are the log-probs of this
    pass, which are the old ones if the batch has a single step (`old` is None). A row that an earlier policy played has
    its own (`old_logprobs`).
    """
    having = _rows_with(rows, component)
    terms = [term for row in having for term in row.terms if term.component == component]
    recorded = [term.streams.get("old_logprobs") for term in terms]
    if all(own is None for own in recorded):
        return current if old is None else _lookup(having, old, current.device), None
    counts = [len(term.positions_T) for term in terms]
    stale = torch.from_numpy(np.repeat([own is not None for own in recorded], counts)).to(current.device)
    parts = [
        torch.from_numpy(own).to(part) if own is not None else part if old is None else _lookup([row], old, part.device)
        for row, own, part in zip(having, recorded, current.split(counts), strict=True)
    ]
    return torch.cat(parts), stale


def _rows_with(rows: Sequence[Row], component: str) -> list[Row]:
    return [row for row in rows if any(term.component == component for term in row.terms)]


def _lookup(rows: Sequence[Row], table: OldLogprobs, device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate([table[row.origin] for row in rows])).to(device)


def told_beforehand(rows: Sequence[Row], settings: LossSettings, old: OldLogprobs | None) -> list[Row]:
    """Return the rows of an optimiser step, with the stream `told` of their policy tokens if the loss looks beforehand.

    Each of `POLICY_LOSSES` is told of its own tokens. Without `old` log-probs (a single step) those are taken that were
    recorded as the tokens were sampled.
    """
    policy_loss, told = TOKEN_LOSSES[settings.policy_loss], dict[int, LossTerm]()
    if not policy_loss.looks_beforehand:
        return list(rows)
    for component in POLICY_LOSSES:
        having = _rows_with(rows, component)
        terms = [term for row in having for term in row.terms if term.component == component]
        if not terms:
            continue
        before = [
            own if own is not None else term.streams["sampled_logprobs"] if old is None else old[row.origin]
            for row, term, own in zip(having, terms, [term.streams.get("old_logprobs") for term in terms], strict=True)
        ]
        told_N = policy_loss.beforehand(
            np.concatenate(before).astype(np.float64),
            np.concatenate([term.streams["advantages"] for term in terms]).astype(np.float64),
            key_of(settings.key, component),
            **settings.knobs,
        )
        parts = np.split(told_N.astype(np.float32), np.cumsum([len(part) for part in before])[:-1])
        for term, part in zip(terms, parts, strict=True):
            told[id(term)] = replace(term, streams={**term.streams, "told": part})
    return [replace(row, terms=tuple(told.get(id(term), term) for term in row.terms)) for row in rows]


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
