"""ARPO: a stored success enters a group that failed altogether (arXiv 2505.16282)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from envrl.curriculum import Plan, generator
from envrl.ranges import Positive
from envrl.registry import register
from envrl.replay import fresh, start_of
from envrl.types import Trajectory, TrajectoryGroup


@register("replay", "arpo")
class Arpo:
    """Put a success of the same task, from the same start, in the place of a failure, where a whole group failed alike.

    So a group with equal returns, which teaches nothing, gets one that differs. The success keeps the log-probs that
    its tokens were drawn with: its ratio is to the policy that played it.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        per_task: Positive = 8,  # successes of a task that are kept, the latest
        size: Positive = 1024,  # episodes that are kept in all, the latest
        age: Positive = 50,  # updates after which a success is forgotten
    ) -> None:
        self._seed, self._per_task, self._size, self._age = plan.seed, per_task, size, age
        self._stored: dict[str, TrajectoryGroup] = {}
        """The successes from each start, the earliest first; the start that got one last stands last."""
        self._figures: dict[str, float] = {}

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> list[TrajectoryGroup]:
        """Return the groups, a failed one with a stored success in it; store the successes of this update."""
        kept = ((place, fresh(group, update, self._age)) for place, group in self._stored.items())
        self._stored = {place: group for place, group in kept if group.trajectories}
        mixed = [self._helped(group, update) for group in groups]
        for group in groups:
            self._store(group)
        ages = [update - group.trajectories[0].policy_version for group in mixed if group.source == "arpo"]
        self._figures = {
            "swapped": len(ages),
            "unhelped": sum(map(_failed, mixed)),
            "staleness": max(ages, default=0),
            "stored": sum(len(group.trajectories) for group in self._stored.values()),
        }
        return mixed

    def figures(self) -> dict[str, float]:
        """Return the number of failed groups with and without a stored success, its largest age, and what is stored."""
        return self._figures

    def state(self) -> Any:
        return self._stored

    def load(self, state: Any) -> None:
        self._stored = state

    def _helped(self, group: TrajectoryGroup, update: int) -> TrajectoryGroup:
        """Return a group, with a stored success in place of its first episode if it failed altogether."""
        stored = self._stored.get(_place(group.trajectories[0])) if _failed(group) else None
        if stored is None:
            return group
        drawn = generator(self._seed, update, stored.task.id, "arpo").integers(len(stored.trajectories))
        return replace(group, trajectories=(stored.trajectories[drawn], *group.trajectories[1:]), source="arpo")

    def _store(self, group: TrajectoryGroup) -> None:
        """Keep the successes of a group, and no more episodes in all than `size`."""
        for success in (episode for episode in group.trajectories if episode.success):
            place = _place(success)
            stored = self._stored.pop(place, None)
            earlier = stored.trajectories if stored else ()
            self._stored[place] = TrajectoryGroup(group.task, (*earlier, success)[-self._per_task :], source="arpo")
        while sum(len(stored.trajectories) for stored in self._stored.values()) > self._size:
            self._stored.pop(next(iter(self._stored)))


def _failed(group: TrajectoryGroup) -> bool:
    """Return whether all episodes of a group failed, with equal returns."""
    return bool(group.trajectories) and not group.differs and not any(each.success for each in group.trajectories)


def _place(trajectory: Trajectory) -> str:
    """Return the name of an episode's start: its task, and the commands that were played first."""
    return "\n".join((trajectory.task.id, *start_of(trajectory)))
