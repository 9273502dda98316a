"""State prediction in the policy's own pass: predict the world's answers inside the policy's rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envrl.registry import register
from envrl.types import InPass, TrajectoryGroup, episodes_of


@register("auxiliary", "echo", title="prediction in pass", in_pass=True)
def echo(groups: Sequence[TrajectoryGroup]) -> Iterator[InPass]:
    """Yield the world's answer to every step; no extra forward pass is needed.

    ECHO (arXiv 2605.24517) divides by the answer tokens of each sequence: `aggregation = "sequence_mean"`.
    """
    for trajectory in episodes_of(groups):
        for step in range(len(trajectory.transitions)):
            yield InPass(trajectory, step)
