"""Turn the examples of an auxiliary objective into rows and terms: sample a fraction, remove duplicates, and exchange
targets for a placebo. All auxiliary objectives share this code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from envrl.objective.placebo import derange
from envrl.randomness import key_of, sample_share
from envrl.samples.rows import counted_term
from envrl.types import Example, InPass, LossTerm, Pair, Row, Span, Trajectory


class HowRows(Protocol):
    """The settings of an auxiliary objective's rows (a part of `AuxiliaryConfig`)."""

    @property
    def fraction(self) -> float: ...
    @property
    def deduplicate(self) -> bool: ...
    @property
    def tokens(self) -> Literal["target", "all"]: ...
    @property
    def aggregation(self) -> str: ...
    @property
    def placebo(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class AuxiliaryRows:
    """An objective's own rows, its terms in the policy's rows by episode and segment number, and figures to log."""

    rows: list[Row] = field(default_factory=list)
    in_pass: dict[int, dict[int, list[LossTerm]]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


def auxiliary_rows(
    name: str,
    yielded: Iterable[Example | InPass],
    trajectories: Sequence[Trajectory],
    write: Callable[[Example], Pair],
    context: int,
    how: HowRows,
    key: int,
) -> AuxiliaryRows:
    """Return the rows and terms of an auxiliary objective for an update's episodes; `key` seeds the sampling.

    `write` encodes an example; one longer than the context is left out and counted. Examples are sampled one by one,
    but tokens of the policy's rows by episode, since a row costs the same however many of its tokens are predicted.
    """
    examples: list[Example] = []
    parts: list[InPass] = []
    for each in yielded:
        if isinstance(each, Example):
            examples.append(each)
        else:
            parts.append(each)
    figures: dict[str, float] = {}
    pairs = [write(example) for example in examples]
    if how.deduplicate:
        pairs = list(dict.fromkeys(pairs))
    fitting = [pair for pair in pairs if len(pair.prompt) + len(pair.target) <= context]
    if len(fitting) < len(pairs):
        figures[f"rows/{name}_too_long"] = len(pairs) - len(fitting)
    pairs = sample_share(fitting, how.fraction, key)
    in_rows = _labels_of(parts, trajectories, how.fraction, key)
    if how.placebo:
        pairs, in_rows = _exchange_targets(name, pairs, in_rows, key_of(key, "placebo"), figures)
    rows = pair_rows(pairs, name, how.tokens, how.aggregation)
    in_pass = _terms(name, in_rows, how)
    figures[f"rows/{name}"] = len(rows) + sum(map(len, in_pass.values()))
    return AuxiliaryRows(rows, in_pass, figures)


def pair_rows(
    pairs: Sequence[Pair], component: str, tokens: str = "target", aggregation: str = "token_mean"
) -> list[Row]:
    """Return one row per pair, with a loss on the target's tokens, or on all but the first token (`tokens = "all"`)."""
    rows = []
    for number, pair in enumerate(pairs):
        ids = np.array((*pair.prompt, *pair.target), dtype=np.int32)
        positions = range(1 if tokens == "all" else len(pair.prompt), len(ids))
        term = counted_term(component, positions, aggregation, factors=pair.weight)
        rows.append(Row(ids, (term,), f"{component}/{number}"))
    return rows


@dataclass(frozen=True, slots=True)
class _Labels:
    """Tokens to predict in a policy row: their place, and the target there."""

    episode: int
    segment: int
    start: int
    target: tuple[int, ...]
    weight: float


def _labels_of(parts: Sequence[InPass], trajectories: Sequence[Trajectory], fraction: float, key: int) -> list[_Labels]:
    """Return the places of the parts in their rows, for a sampled fraction of the episodes."""
    if not parts:
        return []
    numbers = {id(trajectory): number for number, trajectory in enumerate(trajectories)}
    chosen = set(sample_share(range(len(trajectories)), fraction, key))
    labels: dict[tuple[int, int, int], _Labels] = {}  # a part that is yielded twice counts once
    for part in parts:
        number = numbers[id(part.trajectory)]
        for place, span in _spans(part) if number in chosen else ():
            token_ids = part.trajectory.segments[place].token_ids
            target = tuple(token_ids[span.start : span.stop].tolist())
            labels[number, place, span.start] = _Labels(number, place, span.start, target, part.weight)
    return list(labels.values())


def _spans(part: InPass) -> Iterator[tuple[int, Span]]:
    """Yield the segment number and the token span of a part."""
    for place, segment in enumerate(part.trajectory.segments):
        spans = segment.answers if part.part == "observation" else segment.spans
        yield from ((place, span) for span in spans if span.step == part.step and span.stop > span.start)


def _exchange_targets(
    name: str, pairs: list[Pair], labels: list[_Labels], key: int, figures: dict[str, float]
) -> tuple[list[Pair], list[_Labels]]:
    """Return the pairs and labels with exchanged targets; in the policy's rows only the labels change, not the tokens.

    There a longer target is cut to its new place; after a shorter one nothing is predicted.
    """
    targets = [*(pair.target for pair in pairs), *(each.target for each in labels)]
    exchange = derange(targets, [len(target) for target in targets], key)
    figures[f"placebo/{name}_targets"] = len(targets)
    figures[f"placebo/{name}_coincidences"] = exchange.coincidences
    figures[f"placebo/{name}_other_length"] = exchange.other_length
    new = [targets[source] for source in exchange.source_N]
    return [replace(pair, target=target) for pair, target in zip(pairs, new, strict=False)], [
        replace(each, target=target[: len(each.target)]) for each, target in zip(labels, new[len(pairs) :], strict=True)
    ]


def _terms(name: str, in_rows: Sequence[_Labels], how: HowRows) -> dict[int, dict[int, list[LossTerm]]]:
    """Return one term per row, with all tokens to predict in it, by episode and segment number."""
    by_row: dict[tuple[int, int], list[_Labels]] = defaultdict(list)
    for each in in_rows:
        by_row[each.episode, each.segment].append(each)
    terms: dict[int, dict[int, list[LossTerm]]] = defaultdict(dict)
    for (episode, segment), parts in by_row.items():
        positions = [part.start + place for part in parts for place in range(len(part.target))]
        labels = np.array([token for part in parts for token in part.target], dtype=np.int32)
        factors = np.array([part.weight for part in parts for _ in part.target])
        streams = {"targets": labels} if how.placebo else {}
        terms[episode][segment] = [counted_term(name, positions, how.aggregation, factors=factors, streams=streams)]
    return terms
