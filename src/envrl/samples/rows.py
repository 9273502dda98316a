"""Make training rows from recorded trajectories; nothing is tokenised here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envrl.objective.aggregation import row_weights
from envrl.types import LossTerm, Ragged, Row, Segment, Span, Trajectory


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
) -> LossTerm:
    """Return a component's term at these positions of a row; `factors` scale the losses, not the token count."""
    weights, shares = row_weights([len(positions)], aggregation)
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
) -> list[Row]:
    """Return a trajectory's policy rows, one per segment, with the extra terms that `in_pass` has by segment number.

    Tokens that the restriction fixed have no gradient and are not counted. A segment whose advantages are all 0 gets no
    policy term, so groups of equal returns cost nothing; with `idle` it gets one, which counts in the denominator.
    `stale`: an earlier policy played the trajectory, so its log-probs become `old_logprobs`.
    """
    rows = []
    for number, segment in enumerate(trajectory.segments):
        terms = []
        if idle or any(advantages_S[span.step] != 0.0 for span in segment.spans):
            term = _policy_term(trajectory, segment, advantages_S, aggregation, stale)
            terms += [term] if term is not None else []
        terms += (in_pass or {}).get(number, ())
        if terms:
            origin = f"v{trajectory.policy_version}/{trajectory.task.id}#{trajectory.member}/{number}"
            rows.append(Row(segment.token_ids, tuple(terms), origin))
    return rows


def learns(row: Row) -> bool:
    """Return whether a row has a policy token with a non-zero advantage."""
    return any(term.component == "policy" and term.streams["advantages"].any() for term in row.terms)


def _policy_term(
    trajectory: Trajectory, segment: Segment, advantages_S: NDArray[np.float64], aggregation: str, stale: bool
) -> LossTerm | None:
    positions, advantages, logprobs, allowed = [], [], [], []
    for span in segment.spans:
        action = trajectory.transitions[span.step].action
        for offset, choices in enumerate(action.allowed):
            if choices is not None and len(choices) == 1:
                continue
            positions.append(span.start + offset)
            advantages.append(advantages_S[span.step])
            logprobs.append(action.logprobs[offset])
            allowed.append(choices)
    if not positions:
        return None
    streams = {
        "advantages": np.array(advantages, dtype=np.float32),
        "sampled_logprobs": np.array(logprobs, dtype=np.float32),
    }
    if stale:
        streams["old_logprobs"] = streams["sampled_logprobs"]
    return counted_term("policy", positions, aggregation, streams=streams, allowed=ragged(allowed))


def places(spans: Iterable[Span]) -> list[int]:
    """Return the positions of all tokens in these spans."""
    return [place for span in spans for place in range(span.start, span.stop)]
