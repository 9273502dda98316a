"""The policy's part of the loss: its tokens' losses, weighed by importance, with entropy, regularizers and KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from envrl.engine.loss_settings import LossSettings, OldLogprobs, Totals
from envrl.models.scores import TokenScores
from envrl.objective.losses.kl import KL_LOSSES
from envrl.objective.policy import TOKEN_LOSSES, importance_ratio, stale_importance, truncated_importance
from envrl.objective.regularizers.tokens import PolicyTokens
from envrl.randomness import key_of
from envrl.types import LossTerm, Row

POLICY_LOSSES = ("policy", "replay")
"""Components with the policy loss: episodes that the estimator judged, and those whose advantages a replay gave."""


def policy_part(
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
    advantages = stream(rows, component, "advantages", device)
    sampled = stream(rows, component, "sampled_logprobs", device)
    current = scores.logprobs.detach()
    before, stale = _before(rows, component, current, old)
    policy_loss, row_N = TOKEN_LOSSES[settings.policy_loss], row_numbers(rows, component, device)
    told = stream(rows, component, "told", device) if policy_loss.looks_beforehand else None
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
        theirs = lookup(rows_with(rows, component), reference, device)
        kl = KL_LOSSES[settings.kl_estimator](scores.logprobs, theirs)
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
    having = rows_with(rows, component)
    terms = [term for row in having for term in row.terms if term.component == component]
    recorded = [term.streams.get("old_logprobs") for term in terms]
    if all(own is None for own in recorded):
        return current if old is None else lookup(having, old, current.device), None
    counts = [len(term.positions_T) for term in terms]
    stale = torch.from_numpy(np.repeat([own is not None for own in recorded], counts)).to(current.device)
    parts = [
        torch.from_numpy(own).to(part) if own is not None else part if old is None else lookup([row], old, part.device)
        for row, own, part in zip(having, recorded, current.split(counts), strict=True)
    ]
    return torch.cat(parts), stale


def rows_with(rows: Sequence[Row], component: str) -> list[Row]:
    return [row for row in rows if any(term.component == component for term in row.terms)]


def lookup(rows: Sequence[Row], table: OldLogprobs, device: torch.device) -> Tensor:
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
        having = rows_with(rows, component)
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


def stream(rows: Sequence[Row], component: str, name: str, device: torch.device) -> Tensor:
    """Return a stream of the component's terms in these rows, concatenated."""
    arrays = [term.streams[name] for row in rows for term in row.terms if term.component == component]
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def row_numbers(rows: Sequence[Row], component: str, device: torch.device) -> Tensor:
    """Return the row number (0, 1, …) of each of the component's tokens, counting only rows with the component."""
    counts = [len(t.positions_T) for row in rows for t in row.terms if t.component == component]
    return torch.from_numpy(np.repeat(np.arange(len(counts)), counts)).to(device)
