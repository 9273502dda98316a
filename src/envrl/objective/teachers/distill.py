"""On-policy distillation: another model scores what the policy itself said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envrl.objective.teachers.lesson import Lesson
from envrl.registry import register
from envrl.types import TrajectoryGroup, episodes_of


@register("teacher", "distill", title="on-policy distillation", model="path")
def distill(
    groups: Sequence[TrajectoryGroup],
    *,
    path: str = "",  # the teacher: a folder, such as a run's checkpoints/latest, or a name of `envrl models list`
    failures: bool = False,  # only episodes that failed are taught
) -> Iterator[Lesson]:
    """Yield every episode: the teacher sees what the policy saw (GKD, arXiv 2306.13649, with λ = 1 and reverse KL)."""
    for trajectory in episodes_of(groups):
        if not (failures and trajectory.success):
            yield Lesson(trajectory)
