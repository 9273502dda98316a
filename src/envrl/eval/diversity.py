"""How different the episodes of an update are: a policy that seeks what is easy to predict repeats itself."""

from __future__ import annotations

from collections.abc import Sequence

from envrl.types import TrajectoryGroup, episodes_of


def diversity(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    """Return three shares: different observations of a task among its steps, steps at an observation that the episode
    has seen before, and different sequences of commands among the episodes of a group."""
    trajectories = episodes_of(groups)
    steps = max(1, sum(len(trajectory.transitions) for trajectory in trajectories))
    seen = {(t.task.id, step.observation.text) for t in trajectories for step in t.transitions}
    fresh = sum(len({step.observation.text for step in t.transitions}) for t in trajectories)
    played = sum(len({tuple(s.action.text for s in t.transitions) for t in g.trajectories}) for g in groups)
    return {
        "distinct_states": len(seen) / steps,
        "repeated_states": 1.0 - fresh / steps if trajectories else 0.0,
        "distinct_episodes": played / max(1, len(trajectories)),
    }
