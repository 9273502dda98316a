"""Make training rows from recorded trajectories; nothing is tokenised here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envrl.objective.aggregation import row_weights
from envrl.types import Action, LossTerm, Ragged, Row, Segment, Span, Trajectory


def ragged(lists: Sequence[Sequence[int] | None]) -> Ragged:
    """Concatenate lists of ids; None (the whole vocabulary) becomes an empty list."""
    filled = [ids or () for ids in lists]
    offsets = np.cumsum([0, *map(len, filled)], dtype=np.int32)
    return Ragged(np.array([i for ids in filled for i in ids], dtype=np.int32), offsets)


def counted_term(
    component: str,
    positions: Sequence[int],
    aggregation: str = "token_mean",
    *,
    factors: Sequence[float] | NDArray[Any] | float = 1.0,
    streams: Mapping[str, NDArray[Any]] | None = None,
    allowed: Ragged | None = None,
    besides: int = 0,
    constant: float | None = None,
) -> LossTerm:
    """Return a component's term at these positions of a row; `factors` scale the losses, not the token count.

    `besides` is a number of tokens without a loss that a row's own mean counts all the same; `constant` is the token
    count of the aggregation of that name.
    """
    counted = len(positions) + (besides if aggregation == "sequence_mean" else 0)
    weights, shares = row_weights([counted], aggregation, constant)
    weights_T = np.full(len(positions), weights[0]) * np.asarray(factors)
    return LossTerm(
        component,
        np.array(positions, dtype=np.int32),
        weights_T.astype(np.float32),
        float(shares[0]),
        streams or {},
        allowed,
    )


def policy_rows(
    trajectory: Trajectory,
    advantages_S: NDArray[np.float64],
    aggregation: str,
    in_pass: Mapping[int, Sequence[LossTerm]] | None = None,
    *,
    idle: bool = False,
    stale: bool = False,
    component: str = "policy",
    weight: float = 1.0,
    constant: float | None = None,
    level: str = "token",
) -> list[Row]:
    """Return a trajectory's policy rows, one per segment, with the extra terms that `in_pass` has by segment number.

    Tokens that the restriction fixed have no gradient and are not counted. A segment whose advantages are all 0 gets no
    policy term, so groups of equal returns cost nothing; with `idle` it gets one, which counts in the denominator.
    `stale`: an earlier policy played the trajectory, so its log-probs become `old_logprobs`. `weight` scales
    the losses; `constant` is the token count of a row with the aggregation "constant". `level` says of which tokens a
    step's advantages are, where it has several.
    """
    rows = []
    for number, segment in enumerate(trajectory.segments):
        terms = []
        if idle or any(np.any(advantages_S[span.step]) for span in segment.spans):
            term = _policy_term(trajectory, segment, advantages_S, aggregation, stale, constant, level)
            if term is not None:
                terms.append(replace(term, component=component, weights_T=term.weights_T * weight))
        terms += (in_pass or {}).get(number, ())
        if terms:
            rows.append(Row(segment.token_ids, tuple(terms), origin_of(trajectory, number)))
    return rows


def origin_of(trajectory: Trajectory, segment: int) -> str:
    """Return the name of the row of a trajectory's segment."""
    return f"v{trajectory.policy_version}/{trajectory.task.id}#{trajectory.member}/{segment}"


def judged_offsets(action: Action, level: str) -> list[int]:
    """Return which tokens of an action have a value: its first ("step"), its last, the first and all not fixed
    ("token"), or the first and that with which the part of its command begins, if it has such parts ("parts")."""
    if level == "last":
        return [len(action.allowed) - 1]
    if level == "parts":
        return [0, action.plan] if action.plan else [0]
    return [0, *(offset for offset in free_tokens(action) if offset)] if level == "token" else [0]


def free_tokens(action: Action) -> list[int]:
    """Return which tokens of an action were sampled among several: the others have no log-prob to learn."""
    return [offset for offset, choices in enumerate(action.allowed) if choices is None or len(choices) > 1]


def learns(row: Row) -> bool:
    """Return whether a row has a policy token with a non-zero advantage."""
    return any(term.component == "policy" and term.streams["advantages"].any() for term in row.terms)


def _policy_term(
    trajectory: Trajectory,
    segment: Segment,
    advantages_S: NDArray[np.float64],
    aggregation: str,
    stale: bool,
    constant: float | None,
    level: str,
) -> LossTerm | None:
    positions, advantages, logprobs, allowed = [], [], [], []
    for span in segment.spans:
        action = trajectory.transitions[span.step].action
        advantages_T = _by_token(action, advantages_S[span.step], level)
        for offset in free_tokens(action):
            positions.append(span.start + offset)
            advantages.append(advantages_T[offset])
            logprobs.append(action.logprobs[offset])
            allowed.append(action.allowed[offset])
    if not positions:
        return None
    streams = {
        "advantages": np.array(advantages, dtype=np.float32),
        "sampled_logprobs": np.array(logprobs, dtype=np.float32),
    }
    if stale:
        streams["old_logprobs"] = streams["sampled_logprobs"]
    return counted_term("policy", positions, aggregation, streams=streams, allowed=ragged(allowed), constant=constant)


def _by_token(action: Action, advantage: float | NDArray[np.float64], level: str) -> NDArray[np.float64]:
    """Return an advantage for each token of an action: the step's own, or that of the last judged token until it."""
    begins = judged_offsets(action, level) if np.size(advantage) > 1 else [0]
    return np.repeat(advantage, np.diff([*begins, len(action.allowed)]))


def places(spans: Iterable[Span]) -> list[int]:
    """Return the positions of all tokens in these spans."""
    return [place for span in spans for place in range(span.start, span.stop)]
