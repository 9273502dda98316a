"""PaW: the next observation after uncertain commands, by a clipped error, the less the better the group does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from envrl.objective.auxiliary.state import state
from envrl.ranges import Fraction, Rate
from envrl.registry import register
from envrl.types import Example, InPass, TrajectoryGroup

if TYPE_CHECKING:
    from torch import Tensor


def clipped_error(logprobs_N: Tensor, row_N: Tensor, *, confidence: float) -> Tensor:
    """Return each token's error 1 − min(p, confidence): a token that is as likely as that has no more gradient."""
    return 1.0 - logprobs_N.exp().clamp(max=confidence)


def _in_pass(settings: Mapping[str, Any]) -> bool:
    return not settings["own_rows"]


@register(
    "auxiliary",
    "paw",
    title="PaW",
    asks="state",
    in_pass=_in_pass,
    played=True,
    loss=clipped_error,
    defaults={"schedule": "constant", "select": "uncertain", "fraction": 0.75},
)
def paw(
    groups: Sequence[TrajectoryGroup],
    *,
    confidence: Rate = 0.2,  # ρ: a token that is predicted with this probability has no more gradient
    least: Fraction = 0.0,  # the share of the weight that the most successful group keeps
    own_rows: bool = False,  # rows that ask for the observation, as `state` has them, for the layout 'steps'
) -> Iterator[Example | InPass]:
    """Yield the answers to all steps, weighed by how little their groups achieve (PaW, arXiv 2606.02388).

    The setting `select = "uncertain"` keeps the share `fraction` (α) of them. The loss of a token of group g is
    λ · w_g · (1 − min(p, ρ)) with w_g = max(least, 1 − mean of the group's returns / largest return of the update), 1
    where no return is above 0.
    """
    best = max((float(group.returns_G.max()) for group in groups if group.trajectories), default=0.0)
    for group in groups:
        achieved = float(np.clip(group.returns_G.mean() / best, 0.0, 1.0)) if best > 0 and group.trajectories else 0.0
        weight = max(least, 1.0 - achieved)
        if own_rows:
            yield from (replace(example, weight=weight) for example in state([group]))
            continue
        for trajectory in group.trajectories:
            for step in range(len(trajectory.transitions)):
                yield InPass(trajectory, step, weight=weight)
