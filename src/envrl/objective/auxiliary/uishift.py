"""Inverse dynamics with a verifiable reward: which command was the first on the way from here to there?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from envrl.objective.auxiliary.inverse import inverse
from envrl.ranges import Positive
from envrl.registry import register
from envrl.types import Example, TrajectoryGroup

if TYPE_CHECKING:
    from torch import Tensor


def expected_miss(logprobs_N: Tensor, row_N: Tensor) -> Tensor:
    """Return 1 − P for every token of a row, P = Π p the probability of all of its predicted tokens.

    P is the expected reward of an answer that is drawn from the model and pays 1 where it is the true one, word for
    word. So −∇P is the policy gradient of that reward without its noise: no answers are drawn.
    """
    rows = int(row_N.max()) + 1 if row_N.numel() else 0
    sums_R = logprobs_N.new_zeros(rows).index_add(0, row_N, logprobs_N)
    return 1.0 - sums_R[row_N].exp()


@register(
    "auxiliary",
    "uishift",
    title="UI-Shift",
    asks="inverse",
    loss=expected_miss,
    defaults={"aggregation": "sequence_mean"},
)
def uishift(
    groups: Sequence[TrajectoryGroup],
    *,
    question: str = "Which command did you give first? Write the command alone.",  # of a chat
    k: Positive = 1,  # the observation that is shown is that many steps later
    choices: bool = False,  # the question lists the admissible commands, in an order that is drawn; the true one, too
) -> Iterator[Example]:
    """Yield … sₜ, sₜ₊ₖ → aₜ for every step that k − 1 others follow (UI-Shift, arXiv 2505.12493)."""
    for example in inverse(groups, question=question, choices=choices):
        steps = example.trajectory.transitions
        if example.step + k <= len(steps):
            yield replace(example, following=steps[example.step + k - 1].next_observation.text)
