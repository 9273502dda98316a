"""The tokens of the policy's own rows that an auxiliary objective predicts: their places, labels and terms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from envrl.config.schema import AuxiliaryConfig
from envrl.randomness import sample_share
from envrl.rendering.kinds import Kinds
from envrl.samples.rows import counted_term
from envrl.types import Ids, InPass, LossTerm, Span, Trajectory


class Tokens(Protocol):
    """What a renderer says of tokens."""

    def texts(self, ids: Ids) -> Sequence[str]: ...
    def kinds(self, ids: Ids) -> Kinds: ...


@dataclass(frozen=True, slots=True)
class Labels:
    """Tokens to predict in a policy row: their place, and the target there. `besides` masked ones count in its mean."""

    episode: int
    segment: int
    start: int
    target: Ids
    weight: float
    besides: int = 0


def labels_of(
    parts: Sequence[InPass], trajectories: Sequence[Trajectory], fraction: float, key: int, tokens: Tokens
) -> list[Labels]:
    """Return the places of the parts in their rows, for a sampled fraction of the episodes.

    A masked text cuts a part in two, each with its own target.
    """
    if not parts:
        return []
    numbers = {id(trajectory): number for number, trajectory in enumerate(trajectories)}
    chosen = set(sample_share(range(len(trajectories)), fraction, key))
    labels: dict[tuple[int, int, int], Labels] = {}  # a part that is yielded twice counts once
    for part in parts:
        number = numbers[id(part.trajectory)]
        for place, span in _spans(part) if number in chosen else ():
            token_ids = part.trajectory.segments[place].token_ids
            target: Ids = tuple(token_ids[span.start : span.stop].tolist())
            runs = [(0, len(target))] if part.predicted else []
            if part.predicted and part.masked:
                runs = unmasked(tokens.texts(target), part.masked)
            besides = len(target) - sum(stop - start for start, stop in runs) if part.whole else 0
            for start, stop in runs or [(0, 0)]:
                at = span.start + start
                labels[number, place, at] = Labels(number, place, at, target[start:stop], part.weight, besides)
                besides = 0
    return list(labels.values())


def unmasked(texts: Sequence[str], masked: Sequence[str]) -> list[tuple[int, int]]:
    """Return the runs (start, stop) of tokens of which no character lies within a masked text.

    >>> unmasked(["You see ", "a key", ". Nothing", " happens."], ["Nothing happens."])
    [(0, 2)]
    """
    whole, ends = "".join(texts), np.cumsum([len(text) for text in texts])
    hidden = np.zeros(len(whole) + 1, dtype=bool)
    for text in filter(None, masked):
        place = whole.find(text)
        while place >= 0:
            hidden[place : place + len(text)] = True
            place = whole.find(text, place + len(text))
    kept = [not hidden[end - len(text) : end].any() for text, end in zip(texts, ends, strict=True)]
    edges = np.flatnonzero(np.diff([0, *map(int, kept), 0]))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _spans(part: InPass) -> Iterator[tuple[int, Span]]:
    """Yield the segment number and the token span of a part."""
    for place, segment in enumerate(part.trajectory.segments):
        spans = segment.answers if part.part == "observation" else segment.spans
        yield from ((place, span) for span in spans if span.step == part.step and span.stop > span.start)


def terms_of(
    name: str, in_rows: Sequence[Labels], how: AuxiliaryConfig, tokens: Tokens
) -> dict[int, dict[int, list[LossTerm]]]:
    """Return one term per row, with all tokens to predict in it, by episode and segment number."""
    by_row: dict[tuple[int, int], list[Labels]] = defaultdict(list)
    for each in in_rows:
        by_row[each.episode, each.segment].append(each)
    terms: dict[int, dict[int, list[LossTerm]]] = defaultdict(dict)
    for (episode, segment), parts in by_row.items():
        positions = [part.start + place for part in parts for place in range(len(part.target))]
        if not positions:
            continue
        labels = np.array([token for part in parts for token in part.target], dtype=np.int32)
        factors = np.array([part.weight for part in parts for _ in part.target])
        streams = {"kinds": np.concatenate([tokens.kinds(part.target) for part in parts])}
        streams |= {"targets": labels} if how.placebo else {}
        besides = sum(part.besides for part in parts)
        term = counted_term(name, positions, how.aggregation, factors=factors, streams=streams, besides=besides)
        terms[episode][segment] = [term]
    return terms
