"""What is known of each token of a policy's responses: its text, its log-probability, and the entropy before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from envrl.config.schema import Config
from envrl.engine.local import loss_settings
from envrl.engine.update import policy_entropies
from envrl.models.load import LanguageModel
from envrl.models.tokenizer import Codec
from envrl.samples.rows import policy_rows
from envrl.types import Action, Row, Trajectory

DIGITS = 4
"""Decimal places that are kept of a log-probability and an entropy."""


def token_figures(
    model: LanguageModel, trajectories: Sequence[Trajectory], config: Config, *, entropies: bool
) -> list[list[dict[str, Any]]]:
    """Return `token_texts`, `logprobs` and, if asked for, `entropies` of each step's response, episode by episode.

    All are in nats. The entropies are those of this model at the temperature of the rollout, over the ids that a token
    was sampled from; an evaluation that was broken off does not know these of the episodes that it has played before.
    A step that no model played has none of the three.
    """
    known = _entropies(model, trajectories, config) if entropies else {}
    return [
        [
            _figures(model.codec, transition.action, known.get((number, step)))
            for step, transition in enumerate(trajectory.transitions)
        ]
        for number, trajectory in enumerate(trajectories)
    ]


def _figures(codec: Codec, action: Action, entropies: Sequence[float] | None) -> dict[str, Any]:
    if not action.token_ids or len(action.logprobs) != len(action.token_ids):
        return {}
    figures: dict[str, Any] = {
        "token_texts": codec.texts(action.token_ids),
        "logprobs": _rounded(action.logprobs),
    }
    return figures if entropies is None else figures | {"entropies": _rounded(entropies)}


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), DIGITS) + 0.0 for value in values]  # no -0.0


def _entropies(
    model: LanguageModel, trajectories: Sequence[Trajectory], config: Config
) -> dict[tuple[int, int], list[float]]:
    """Return the entropies by episode and step; a token that the restriction fixed has 0."""
    rows: list[Row] = []
    for number, trajectory in enumerate(trajectories):
        idle = np.zeros(len(trajectory.transitions))
        made = policy_rows(trajectory, idle, "token_mean", idle=True)
        rows += [replace(row, origin=f"{number}/{row.origin}") for row in made]
    known = policy_entropies(model, rows, loss_settings(config, {}))
    found: dict[tuple[int, int], list[float]] = {}
    for number, trajectory in enumerate(trajectories):
        named = f"{number}/v{trajectory.policy_version}/{trajectory.task.id}#{trajectory.member}"
        for index, segment in enumerate(trajectory.segments):
            values = iter(known.get(f"{named}/{index}", ()))
            for span in segment.spans:
                found[number, span.step] = list(_with_fixed(trajectory.transitions[span.step].action, values))
    return found


def _with_fixed(action: Action, values: Iterator[float]) -> Iterator[float]:
    for choices in action.allowed:
        yield 0.0 if choices is not None and len(choices) == 1 else float(next(values))
