"""State prediction in the policy's own pass: predict the world's answers inside the policy's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envrl.registry import register
from envrl.types import InPass, TrajectoryGroup, episodes_of


@register("auxiliary", "echo", title="prediction in pass", asks="state", in_pass=True)
def echo(
    groups: Sequence[TrajectoryGroup],
    *,
    masked: tuple[str, ...] = (),  # texts of the harness inside the world's answers, which are not predicted
    faults: bool = True,  # the answer to a response without a command is predicted, too
    whole: bool = True,  # a mean over a row's tokens counts those that are not predicted, as the authors' code does
) -> Iterator[InPass]:
    """Yield the world's answer to every step; no extra forward pass is needed (ECHO, arXiv 2605.24517).

    With `aggregation = "sequence_mean"` its loss is the mean over rows of Σ_t −log p(x_t | x_<t) / n, t the predicted
    tokens of a row and n those of all its answers, or with `whole = false` only the predicted ones.
    """
    for trajectory in episodes_of(groups):
        for step, transition in enumerate(trajectory.transitions):
            predicted = faults or transition.action.well_formed
            yield InPass(trajectory, step, masked=masked, predicted=predicted, whole=whole)
