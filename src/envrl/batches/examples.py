"""Turn the examples of an auxiliary objective into rows and terms: sample a fraction, remove duplicates, and exchange
targets for a placebo. All auxiliary objectives share this code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from envrl.batches.in_pass import Labels, Tokens, labels_of, terms_of
from envrl.batches.placebo import derange
from envrl.batches.selection import Memory, Reservoir, Yielded, failures, novel, transition_key, uncertain
from envrl.config.schema import AuxiliaryConfig
from envrl.randomness import key_of, sample_share
from envrl.samples.rows import counted_term
from envrl.types import Example, InPass, LossTerm, Pair, Row, Trajectory


@dataclass(frozen=True, slots=True)
class AuxiliaryRows:
    """An objective's own rows, its terms in the policy's rows by episode and segment number, and figures to log."""

    rows: list[Row] = field(default_factory=list)
    in_pass: dict[int, dict[int, list[LossTerm]]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    def add_terms(self, terms: Mapping[int, Mapping[int, Sequence[LossTerm]]]) -> None:
        """Add terms in the policy's rows to those that are there."""
        for episode, segments in terms.items():
            for segment, new in segments.items():
                self.in_pass.setdefault(episode, {}).setdefault(segment, []).extend(new)


def auxiliary_rows(
    name: str,
    yielded: Iterable[Example | InPass],
    trajectories: Sequence[Trajectory],
    write: Callable[[Example], Pair],
    context: int,
    how: AuxiliaryConfig,
    key: int,
    tokens: Tokens,
    memory: Memory | None = None,
    update: int = 0,
) -> AuxiliaryRows:
    """Return the rows and terms of an auxiliary objective for an update's episodes; `key` seeds the sampling.

    `write` encodes an example; one longer than the context is left out and counted. Examples are sampled one by one,
    but tokens of the policy's rows by episode, since a row costs the same however many of its tokens are predicted.
    A selection that ranks transitions takes the first of them instead, in the policy's rows, too. `memory` is of
    earlier updates, for what needs it; `update` is this one's number.
    """
    figures: dict[str, float] = {}
    memory = memory or Memory()
    chosen, fraction = _selected(name, list(yielded), how, key, memory, figures)
    pairs = [write(each) for each in chosen if isinstance(each, Example)]
    if how.deduplicate:
        pairs = list(dict.fromkeys(pairs))
    fitting = [pair for pair in pairs if len(pair.prompt) + len(pair.target) <= context]
    if len(fitting) < len(pairs):
        figures[f"rows/{name}_too_long"] = len(pairs) - len(fitting)
    pairs = sample_share(fitting, fraction, key)
    if how.reservoir:
        pairs = _drawn(name, fitting, len(pairs), memory.reservoir(name, how.reservoir), update, key, figures)
    parts = [each for each in chosen if isinstance(each, InPass)]
    in_rows = labels_of(parts, trajectories, fraction, key, tokens)
    if how.placebo:
        pairs, in_rows = _exchange_targets(name, pairs, in_rows, key_of(key, "placebo"), figures)
    rows = pair_rows(pairs, name, how.tokens, how.aggregation, tokens)
    in_pass = terms_of(name, in_rows, how, tokens)
    figures[f"rows/{name}"] = len(rows) + sum(map(len, in_pass.values()))
    return AuxiliaryRows(rows, in_pass, figures)


def _selected(
    name: str, yielded: list[Yielded], how: AuxiliaryConfig, key: int, memory: Memory, figures: dict[str, float]
) -> tuple[list[Yielded], float]:
    """Return what the setting `select` leaves, and the share of it that is still to be sampled."""
    if how.select == "all":
        return yielded, how.fraction
    figures[f"rows/{name}_offered"] = len(yielded)
    if how.select == "failures":
        return failures(yielded), how.fraction
    key = key_of(key, "select")
    if how.select == "uncertain":
        return uncertain(yielded, how.fraction, key), 1.0
    chosen = novel(yielded, how.fraction, key, memory.met)
    known = {transition_key(each.trajectory.transitions[each.step]) for each in chosen}
    figures[f"rows/{name}_new"] = len(known - memory.met.keys())
    return chosen, 1.0


def _drawn(
    name: str,
    pairs: Sequence[Pair],
    count: int,
    reservoir: Reservoir,
    update: int,
    key: int,
    figures: dict[str, float],
) -> list[Pair]:
    """Return so many examples of the reservoir, after it was offered those of the update."""
    reservoir.offer(pairs, update, key_of(key, "reservoir"))
    drawn = reservoir.draw(count, key_of(key, "drawn"))
    figures[f"rows/{name}_stored"] = len(reservoir.kept)
    figures[f"rows/{name}_earlier"] = sum(made < update for _, made in drawn)
    return [pair for pair, _ in drawn]


def pair_rows(
    pairs: Sequence[Pair],
    component: str,
    predicted: str = "target",
    aggregation: str = "token_mean",
    tokens: Tokens | None = None,
) -> list[Row]:
    """Return one row per pair, with a loss on the target's tokens, or on all but the first token ("all")."""
    rows = []
    for number, pair in enumerate(pairs):
        ids = np.array((*pair.prompt, *pair.target), dtype=np.int32)
        first = 1 if predicted == "all" else len(pair.prompt)
        kinds = {"kinds": tokens.kinds(pair.target)} if tokens and predicted == "target" else None
        term = counted_term(component, range(first, len(ids)), aggregation, factors=pair.weight, streams=kinds)
        rows.append(Row(ids, (term,), f"{component}/{number}"))
    return rows


def _exchange_targets(
    name: str, pairs: list[Pair], labels: list[Labels], key: int, figures: dict[str, float]
) -> tuple[list[Pair], list[Labels]]:
    """Return the pairs and labels with exchanged targets; in the policy's rows only the labels change, not the tokens.

    There a longer target is cut to its new place; after a shorter one nothing is predicted. An answer that is masked as
    a whole takes no part.
    """
    labels, masked = [each for each in labels if each.target], [each for each in labels if not each.target]
    targets = [*(pair.target for pair in pairs), *(each.target for each in labels)]
    exchange = derange(targets, [len(target) for target in targets], key)
    figures[f"placebo/{name}_targets"] = len(targets)
    figures[f"placebo/{name}_coincidences"] = exchange.coincidences
    figures[f"placebo/{name}_other_length"] = exchange.other_length
    new = [targets[source] for source in exchange.source_N]
    return [replace(pair, target=target) for pair, target in zip(pairs, new, strict=False)], [
        *(
            replace(each, target=target[: len(each.target)])
            for each, target in zip(labels, new[len(pairs) :], strict=True)
        ),
        *masked,
    ]
