"""A second attempt that is told how the world's walkthrough begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil

from envrl.objective.retries.attempt import Retry, Solve
from envrl.ranges import Rate
from envrl.registry import register
from envrl.types import TrajectoryGroup


@register("retry", "hint", solves=True)
def hint(
    groups: Sequence[TrajectoryGroup],
    solve: Solve,
    *,
    share: Rate = 0.5,  # of the walkthrough's commands that are told, its first ones
) -> Iterator[Retry]:
    """Yield the episodes of groups without a success, with how a solution begins (Agent-RLVR, arXiv 2506.11425)."""
    for group in groups:
        if any(trajectory.success for trajectory in group.trajectories):
            continue
        solution = list(solve(group.task))
        told = "\n".join(["A plan that works begins so:", *solution[: ceil(share * len(solution))]])
        yield from (Retry(trajectory, told) for trajectory in group.trajectories)
