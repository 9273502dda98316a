"""One optimiser step: rows in, a changed network and its metrics out; blind to algorithms.

loss = Σ_c  λ_c · ( Σ_tokens w · ℓ_c ) / N_c
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from envrl.models.forward import log_softmax_and_entropy, logits_of, restricted_logits, row_states
from envrl.models.load import LanguageModel
from envrl.objective.policy import TOKEN_LOSSES, kl_k3
from envrl.samples.packing import denominators, pack
from envrl.types import Row, Term


@dataclass(frozen=True, slots=True)
class LossSettings:
    """How rows become a loss; `weights` are λ_c (entropy's is taken from the loss, all others are added)."""

    weights: Mapping[str, float]
    policy_loss: str = "ppo"
    knobs: Mapping[str, float | None] = field(default_factory=dict)
    temperature: float = 1.0
    precision: str = "fp32"
    micro_batch_tokens: int = 16384


@dataclass(slots=True)
class Totals:
    """Sums over the tokens of an optimiser step, kept as tensors until the end."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    tokens: int = 0

    def add(self, name: str, values: Tensor) -> None:
        total = values.detach().double().sum()
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] += values.numel()

    def mean(self, name: str) -> float:
        return float(self.sums[name]) / max(self.counts[name], 1)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Log-probs (n,) and entropies (n,) of a term's tokens under the present network."""

    logprobs: Tensor
    entropies: Tensor


def precision_context(precision: str, device: torch.device) -> torch.autocast | nullcontext[None]:
    """Return the context in which the network runs: bf16 products over fp32 weights, or plain fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def score_terms(
    model: LanguageModel, rows: Sequence[Row], component: str, states: Tensor, temperature: float
) -> TokenScores:
    """Return the scores of all tokens that `component` asks for in these rows, row by row."""
    terms = [(number, term) for number, row in enumerate(rows) for term in row.terms if term.component == component]
    device = states.device
    row_index = torch.from_numpy(np.repeat([n for n, _ in terms], [len(t.positions_T) for _, t in terms])).to(device)
    positions = torch.from_numpy(np.concatenate([t.positions_T for _, t in terms]).astype(np.int64)).to(device)
    targets = torch.from_numpy(
        np.concatenate([rows[n].token_ids[t.positions_T] for n, t in terms]).astype(np.int64)
    ).to(device)
    logits = logits_of(model.network, states[row_index, positions - 1]) / temperature
    allowed = _allowed([t for _, t in terms], logits.shape[1])
    if allowed is None:
        logprobs, entropies = log_softmax_and_entropy(logits)
        return TokenScores(logprobs.gather(1, targets[:, None])[:, 0], entropies)
    ids = torch.from_numpy(allowed).to(device)
    logprobs, entropies = log_softmax_and_entropy(restricted_logits(logits, ids))
    column = (ids == targets[:, None]).int().argmax(1, keepdim=True)
    return TokenScores(logprobs.gather(1, column)[:, 0], entropies)


def _allowed(terms: Sequence[Term], vocabulary: int) -> np.ndarray | None:
    """Return the padded allowed ids (tokens, most choices), -1 beyond a token's own; None where none is restricted."""
    lists: list[np.ndarray] = []
    for term in terms:
        if term.allowed is None:
            lists += [np.zeros(0, dtype=np.int32)] * len(term.positions_T)
        else:
            lists += np.split(term.allowed.values, term.allowed.offsets[1:-1])
    lengths = np.array([len(ids) for ids in lists])
    if not lengths.any():
        return None
    lengths[lengths == 0] = vocabulary
    padded = np.full((len(lists), int(lengths.max())), -1, dtype=np.int64)
    for number, ids in enumerate(lists):
        padded[number, : lengths[number]] = ids if len(ids) else np.arange(vocabulary)
    return padded


def pad_rows(rows: Sequence[Row], pad: int, device: torch.device) -> Tensor:
    """Return ids (rows, longest) of rows, padded on the right."""
    ids = np.full((len(rows), max(len(row.token_ids) for row in rows)), pad, dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row.token_ids)] = row.token_ids
    return torch.from_numpy(ids).to(device)


def gather_term(rows: Sequence[Row], component: str, name: str, device: torch.device) -> Tensor:
    """Return a per-token array of the component's terms (weights_T, advantages_T, …) of these rows, end to end."""
    arrays = [getattr(term, name) for row in rows for term in row.terms if term.component == component]
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def row_numbers(rows: Sequence[Row], component: str, device: torch.device) -> Tensor:
    """Return for each of the component's tokens which row (0, 1, …) it stands in."""
    counts = [len(t.positions_T) for row in rows for t in row.terms if t.component == component]
    return torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(device)


OldLogprobs = Mapping[str, np.ndarray]
"""Log-probs of policy tokens by row origin: those of the policy before a batch's first step, or of the reference."""


def micro_loss(
    model: LanguageModel,
    rows: Sequence[Row],
    totals: Totals,
    denominator: Mapping[str, float],
    settings: LossSettings,
    old: OldLogprobs | None = None,
    reference: OldLogprobs | None = None,
) -> Tensor:
    """Return a micro-batch's part of the loss; sums for the metrics go to `totals`."""
    device = model.device
    with precision_context(settings.precision, device):
        states = row_states(model.network, pad_rows(rows, model.codec.pad, device))
    totals.tokens += sum(len(row.token_ids) for row in rows)
    loss = states.new_zeros((), dtype=torch.promote_types(states.dtype, torch.float32))
    for component in dict.fromkeys(term.component for row in rows for term in row.terms):
        weight = settings.weights.get(component, 0.0)
        weights_N = gather_term(rows, component, "weights_T", device) / denominator[component]
        if component == "policy":
            scores = score_terms(model, rows, component, states, settings.temperature)
            loss = loss + _policy_part(rows, scores, weights_N, totals, settings, old, reference)
        else:
            scores = score_terms(model, rows, component, states, 1.0)
            loss = loss - weight * (weights_N * scores.logprobs).sum()
            totals.add(f"loss/{component}", -scores.logprobs)
    return loss


def _policy_part(
    rows: Sequence[Row],
    scores: TokenScores,
    weights_N: Tensor,
    totals: Totals,
    settings: LossSettings,
    old: OldLogprobs | None,
    reference: OldLogprobs | None,
) -> Tensor:
    device = scores.logprobs.device
    policy_rows = [row for row in rows if any(term.component == "policy" for term in row.terms)]
    advantages = gather_term(rows, "policy", "advantages_T", device)
    sampled = gather_term(rows, "policy", "sampled_logprobs_T", device)
    before = scores.logprobs.detach() if old is None else _lookup(policy_rows, old, device)
    losses, clipped = TOKEN_LOSSES[settings.policy_loss](
        scores.logprobs, before, advantages, row_numbers(rows, "policy", device), **settings.knobs
    )
    part = (weights_N * losses).sum() * settings.weights.get("policy", 1.0)
    totals.add("loss/policy", losses)
    totals.add("clip_fraction", clipped.float())
    totals.add("entropy", scores.entropies)
    totals.add("sampler_mismatch", (before - sampled).abs())
    if settings.weights.get("entropy"):
        part = part - settings.weights["entropy"] * (weights_N * scores.entropies).sum()
    if reference is not None:
        kl = kl_k3(scores.logprobs, _lookup(policy_rows, reference, device))
        part = part + settings.weights["kl"] * (weights_N * kl).sum()
        totals.add("kl", kl)
    return part


def _lookup(rows: Sequence[Row], table: OldLogprobs, device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate([table[row.origin] for row in rows])).to(device)


@torch.no_grad()
def policy_logprobs(model: LanguageModel, rows: Sequence[Row], settings: LossSettings) -> dict[str, np.ndarray]:
    """Return the log-probs of every row's policy tokens under this network, by row origin."""
    result: dict[str, np.ndarray] = {}
    with_policy = [
        replace(row, terms=tuple(t for t in row.terms if t.component == "policy"))
        for row in rows
        if any(t.component == "policy" for t in row.terms)
    ]
    for batch in pack(with_policy, settings.micro_batch_tokens):
        with precision_context(settings.precision, model.device):
            states = row_states(model.network, pad_rows(batch, model.codec.pad, model.device))
        logprobs = score_terms(model, batch, "policy", states, settings.temperature).logprobs.float().cpu().numpy()
        ends = np.cumsum([len(row.terms[0].positions_T) for row in batch])
        for row, part in zip(batch, np.split(logprobs, ends[:-1]), strict=True):
            result[row.origin] = part
    return result


def accumulate(
    model: LanguageModel,
    rows: Sequence[Row],
    settings: LossSettings,
    old: OldLogprobs | None = None,
    reference: OldLogprobs | None = None,
    poll: Callable[[], None] = lambda: None,
) -> tuple[Totals, float]:
    """Add the gradient of the whole step's loss, micro-batch by micro-batch; return the sums and the loss.

    The gradient does not depend on the size of the micro-batches: every term is divided by the whole step's N_c.
    """
    totals, value = Totals(), 0.0
    denominator = denominators(rows)
    for batch in pack(rows, settings.micro_batch_tokens):
        poll()
        loss = micro_loss(model, batch, totals, denominator, settings, old, reference)
        loss.backward()
        value += float(loss.detach())
    return totals, value


def clip_gradient(parameters: Sequence[Tensor], limit: float) -> float:
    """Scale the gradient down to a norm of `limit`; return the norm before, not finite where any entry is not."""
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if math.isfinite(norm):
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(norm))
    return norm
