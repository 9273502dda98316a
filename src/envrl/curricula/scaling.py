"""Short episodes first, longer ones in stages: ScalingInter-RL (arXiv 2509.08755)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from envrl.curriculum import Plan, draw_tasks
from envrl.errors import UserError
from envrl.ranges import Positive
from envrl.registry import register
from envrl.types import Assignment, Task


def _checked(horizons: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Return the horizons, or thirds of the longest episode where none are given."""
    if not horizons:
        return tuple(-(-most * third // 3) for third in (1, 2, 3))
    if min(horizons) < 1 or any(one >= other for one, other in pairwise(horizons)):
        raise UserError(f"curriculum.scaling.horizons must be steps, each more than the last, not {list(horizons)}")
    if horizons[-1] > most:
        raise UserError(
            f"curriculum.scaling.horizons ends with {horizons[-1]} steps, and episodes end after {most} "
            "(rollout.max_steps, else env.max_steps): lower it, or raise that"
        )
    return horizons


@register("curriculum", "scaling")
class Scaling:
    """Limit the episodes of update t to horizons[min((t − 1) // every, last)] steps; tasks come in turn.

    Raises `UserError` for horizons that do not grow, or exceed the recipe's longest episode.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        plan: Plan,
        *,
        horizons: tuple[int, ...] = (),  # steps of an episode in each stage; empty: a third, two thirds, all of them
        every: Positive = 100,  # updates of a stage; the last one goes on to the end
    ) -> None:
        self._tasks, self._plan, self._every = tasks, plan, every
        self._horizons = _checked(horizons, plan.max_steps)
        self._now = 0

    def next(self, update: int) -> list[Assignment]:
        """Return one assignment per task of the update, with the horizon of its stage."""
        self._now = self._horizons[min((update - 1) // self._every, len(self._horizons) - 1)]
        drawn = draw_tasks(self._tasks, self._plan.seed, update, self._plan.tasks)
        return [Assignment(task, self._plan.group_size, max_steps=self._now) for task in drawn]

    def figures(self) -> dict[str, float]:
        """Return the horizon of the last update."""
        return {"horizon": self._now}
