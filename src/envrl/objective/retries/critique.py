"""A second attempt that is told what the first one did, and what the world says was wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envrl.objective.retries.attempt import Retry, Solve
from envrl.objective.teachers.sdpo import failed
from envrl.registry import register
from envrl.types import TrajectoryGroup


@register("retry", "critique")
def critique(
    groups: Sequence[TrajectoryGroup],
    solve: Solve,
    *,
    attempt: bool = True,  # tell the commands of the attempt, too
) -> Iterator[Retry]:
    """Yield every failed episode with a critique by rule (Critique-GRPO's indicative one, arXiv 2506.03106)."""
    for trajectory in (each for group in groups for each in group.trajectories if not each.success):
        if trajectory.transitions:
            said = ["Your attempt:", *(step.action.text for step in trajectory.transitions)] if attempt else []
            yield Retry(trajectory, "\n".join([*said, failed(trajectory), "Try again, another way."]))
