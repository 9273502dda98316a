"""The values that a head gives to the tokens of episodes, and the terms by which it learns their returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from envrl.samples.rows import counted_term, judged_offsets, origin_of
from envrl.types import FloatArray, LossTerm, Row, Segment, Trajectory

Values = Callable[[Sequence[Row], str], Mapping[str, FloatArray]]
"""`Engine.values`."""
Array = NDArray[np.float64]


def values_of_steps(
    trajectories: Sequence[Trajectory], head: str, level: str, values: Values | None
) -> list[list[Array]]:
    """Return a head's values of each step's judged tokens, by episode; None: those of a new head, which are 0."""
    told: Mapping[str, FloatArray] = {}
    if values is not None:
        told = values([row for each in trajectories for row in _rows(each, head, level)], head)
    return [_by_step(each, level, told) for each in trajectories]


def value_terms(trajectory: Trajectory, head: str, returns_S: Array, level: str) -> dict[int, list[LossTerm]]:
    """Return the terms by which a head learns an episode's returns, by segment number; a token counts once."""
    found = {}
    for number, segment in enumerate(trajectory.segments):
        returns = [np.atleast_1d(returns_S[span.step]) for span in segment.spans]
        streams = {"returns": np.concatenate([np.zeros(0), *returns]).astype(np.float32)}
        found[number] = [counted_term(head, _places(trajectory, segment, level), streams=streams)]
    return found


def _rows(trajectory: Trajectory, head: str, level: str) -> list[Row]:
    return [
        Row(
            segment.token_ids,
            (counted_term(head, _places(trajectory, segment, level)),),
            origin_of(trajectory, number),
        )
        for number, segment in enumerate(trajectory.segments)
    ]


def _places(trajectory: Trajectory, segment: Segment, level: str) -> list[int]:
    """Return the positions of a segment's judged tokens; the value of one is that of the state before it."""
    return [
        span.start + offset
        for span in segment.spans
        for offset in judged_offsets(trajectory.transitions[span.step].action, level)
    ]


def _by_step(trajectory: Trajectory, level: str, told: Mapping[str, FloatArray]) -> list[Array]:
    counts = [len(judged_offsets(step.action, level)) for step in trajectory.transitions]
    found = [np.zeros(count) for count in counts]
    for number, segment in enumerate(trajectory.segments):
        values = told.get(origin_of(trajectory, number))
        if values is not None:
            parts = np.split(values.astype(np.float64), np.cumsum([counts[span.step] for span in segment.spans])[:-1])
            for span, part in zip(segment.spans, parts, strict=True):
                found[span.step] = part
    return found
