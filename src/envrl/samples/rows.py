"""Rows of every component, made from what was recorded; nothing is tokenised here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from envrl.objective.aggregation import row_weights
from envrl.types import Ragged, Row, Segment, Term, Trajectory


class PromptAndTarget(Protocol):
    """A row in the making: what is given, and what is to be predicted."""

    @property
    def prompt(self) -> tuple[int, ...]: ...
    @property
    def target(self) -> tuple[int, ...]: ...


def ragged(lists: Sequence[Sequence[int] | None]) -> Ragged:
    """Return lists of ids laid end to end; None (the whole vocabulary) becomes an empty list."""
    filled = [ids or () for ids in lists]
    offsets = np.cumsum([0, *map(len, filled)], dtype=np.int32)
    return Ragged(np.array([i for ids in filled for i in ids], dtype=np.int32), offsets)


def policy_rows(
    trajectory: Trajectory,
    advantages_S: NDArray[np.float64],
    aggregation: str,
    state_ranges: Sequence[Sequence[tuple[int, int]]] | None = None,
) -> list[Row]:
    """Return a trajectory's policy rows, one a segment, each with at most a `policy` and a `state` term.

    Tokens that the restriction left no choice about carry no gradient and are not counted. A segment whose advantages
    are all 0 gets no policy term, so groups of equal returns cost nothing; `state_ranges` (the tokens of the world's
    answers, a list a segment) asks for state prediction in the same pass.
    """
    rows = []
    for number, segment in enumerate(trajectory.segments):
        terms = []
        if any(advantages_S[span.step] != 0.0 for span in segment.spans):
            term = _policy_term(trajectory, segment, advantages_S, aggregation)
            terms += [term] if term is not None else []
        if state_ranges is not None and state_ranges[number]:
            terms.append(_state_term(state_ranges[number]))
        if terms:
            origin = f"{trajectory.task.id}#{trajectory.member}/{number}"
            rows.append(Row(segment.token_ids, tuple(terms), origin))
    return rows


def _policy_term(
    trajectory: Trajectory, segment: Segment, advantages_S: NDArray[np.float64], aggregation: str
) -> Term | None:
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
    weights, shares = row_weights([len(positions)], aggregation)
    return Term(
        "policy",
        np.array(positions, dtype=np.int32),
        np.full(len(positions), weights[0], dtype=np.float32),
        float(shares[0]),
        np.array(advantages, dtype=np.float32),
        np.array(logprobs, dtype=np.float32),
        ragged(allowed),
    )


def _state_term(ranges: Sequence[tuple[int, int]]) -> Term:
    positions = np.concatenate([np.arange(start, stop, dtype=np.int32) for start, stop in ranges])
    return Term("state", positions, np.ones(len(positions), dtype=np.float32), float(len(positions)))


def pair_rows(pairs: Sequence[PromptAndTarget], component: str) -> list[Row]:
    """Return one row a (prompt, target): the mean over the component's target tokens, each counted once."""
    rows = []
    for number, pair in enumerate(pairs):
        start, count = len(pair.prompt), len(pair.target)
        ids = np.array((*pair.prompt, *pair.target), dtype=np.int32)
        positions = np.arange(start, start + count, dtype=np.int32)
        term = Term(component, positions, np.ones(count, dtype=np.float32), float(count))
        rows.append(Row(ids, (term,), f"{component}/{number}"))
    return rows
