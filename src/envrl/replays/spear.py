"""SPEAR: self-imitation of the policy's own good episodes, and a bonus for exploring that fades (arXiv 2509.22601)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import cos, pi
from typing import Any

import numpy as np

from envrl.curriculum import Plan
from envrl.ranges import Count, NonNegative, Positive, Rate
from envrl.registry import register
from envrl.replay import fresh
from envrl.types import Trajectory, TrajectoryGroup

TINY = 1e-6


@register("replay", "spear")
class Spear:
    """Learn from a store of good episodes, with advantages to the level that the policy has reached since.

    An episode is stored if its return is above its group's mean. Once as many stored episodes as `size` are above the
    median b of the latest groups' means, they join an update, with the advantage R − b, and the store is emptied:

        loss = policy loss + γ(t) · Σ_stored ℓ / N_stored      γ(t) = weight · ½ (1 − cos(π t / weight_updates))

    γ stays at `weight` afterwards. ℓ is the policy loss with the ratio to the policy that played the episode. Until
    `bonus_updates` the policy's own episodes get bonus · min(1, turns / bonus_turns) · ½ (1 + cos(π t / bonus_updates))
    at their last step; stored returns are without it. Source: arXiv 2509.22601.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        size: Count = 0,  # good episodes that are learned from together; 0: a quarter of what an update plays
        age: Positive = 5,  # updates after which an episode is forgotten
        baselines: Positive = 10240,  # groups whose mean returns the baseline is the median of, the latest
        std: bool = False,  # divide by the median of the groups' deviations, too
        weight: Rate = 1.0,  # of the self-imitation loss, once it has grown
        weight_updates: Positive = 100,  # updates over which it grows from 0
        bonus: NonNegative = 0.0,  # reward of an episode for its turns, at most and at first
        bonus_turns: Positive = 10,  # turns that earn all of it
        bonus_updates: Positive = 100,  # updates over which it fades to 0
    ) -> None:
        self._size = size or max(1, plan.tasks * plan.group_size // 4)
        self._age, self._baselines, self._std = age, baselines, std
        self._weight, self._weight_updates = weight, weight_updates
        self._bonus, self._bonus_turns, self._bonus_updates = bonus, bonus_turns, bonus_updates
        self._stored: list[TrajectoryGroup] = []
        self._means: list[float] = []
        self._deviations: list[float] = []
        self._figures: dict[str, float] = {}

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> list[TrajectoryGroup]:
        """Return the groups, with the bonus, and those of the store if it is full; store the good episodes."""
        kept = (fresh(group, update, self._age) for group in self._stored)
        self._stored = [group for group in kept if group.trajectories]
        weight = self._weight * _risen(update, self._weight_updates)
        baseline, scale = _median(self._means), _median(self._deviations) + TINY if self._std else 1.0
        judged = (_judged(group, baseline, scale, weight) for group in self._stored)
        good = [group for group in judged if group.trajectories]
        joining = good if sum(len(group.trajectories) for group in good) >= self._size else []
        if joining:
            self._stored = []
        ages = [update - episode.policy_version for group in joining for episode in group.trajectories]
        self._store(groups)
        bonus = self._bonus * (1.0 - _risen(update, self._bonus_updates))
        self._figures = {
            "imitated": len(ages),
            "staleness": max(ages, default=0),
            "stored": sum(len(group.trajectories) for group in self._stored),
            "weight": weight,
            "baseline": baseline,
            "bonus": bonus,
        }
        return [*(self._rewarded(group, bonus) for group in groups), *joining]

    def figures(self) -> dict[str, float]:
        """Return how many episodes joined, the oldest one's age, how many are stored, γ, b, and the bonus."""
        return self._figures

    def state(self) -> Any:
        return {"stored": self._stored, "means": self._means, "deviations": self._deviations}

    def load(self, state: Any) -> None:
        self._stored, self._means, self._deviations = state["stored"], state["means"], state["deviations"]

    def _store(self, groups: Sequence[TrajectoryGroup]) -> None:
        for group in groups:
            returns_G = group.returns_G
            good = tuple(e for e, total in zip(group.trajectories, returns_G, strict=True) if total > returns_G.mean())
            if group.differs:
                self._stored.append(TrajectoryGroup(group.task, good, group.policy_version, source="spear"))
            self._means.append(float(returns_G.mean()))
            self._deviations.append(float(returns_G.std()))
        self._means, self._deviations = self._means[-self._baselines :], self._deviations[-self._baselines :]

    def _rewarded(self, group: TrajectoryGroup, bonus: float) -> TrajectoryGroup:
        """Return a group whose episodes have the bonus for their turns in the reward of their last step."""
        if not bonus:
            return group
        return replace(group, trajectories=tuple(self._with_bonus(each, bonus) for each in group.trajectories))

    def _with_bonus(self, trajectory: Trajectory, bonus: float) -> Trajectory:
        *steps, last = trajectory.transitions or [None]
        if last is None:
            return trajectory
        earned = bonus * min(1.0, len(trajectory.transitions) / self._bonus_turns)
        return replace(trajectory, transitions=(*steps, replace(last, reward=last.reward + earned)))


def _judged(group: TrajectoryGroup, baseline: float, scale: float, weight: float) -> TrajectoryGroup:
    """Return the stored episodes that are above the baseline, with their advantages."""
    advantages = [(episode.total_reward - baseline) / scale for episode in group.trajectories]
    above = [number for number, advantage in enumerate(advantages) if advantage > 0.0]
    return replace(
        group,
        trajectories=tuple(group.trajectories[number] for number in above),
        advantages_G=tuple(advantages[number] for number in above),
        weight=weight,
    )


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0


def _risen(update: int, updates: int) -> float:
    """Return ½ (1 − cos(π t / T)) at update t, and 1 from T on."""
    return 0.5 * (1.0 - cos(pi * min(update, updates) / updates))
