"""Made-up episodes of the boxes, for what looks at outcomes, commands and versions alone."""

from __future__ import annotations

import numpy as np

from envrl.types import (
    Action,
    Observation,
    Segment,
    Span,
    StopReason,
    Task,
    Trajectory,
    TrajectoryGroup,
    Transition,
)


def episode(
    task: Task,
    reward: float = 0.0,
    *,
    version: int = 1,
    member: int = 0,
    steps: int = 2,
    start: tuple[str, ...] = (),
    won: bool | None = None,
) -> Trajectory:
    """Return an episode of `steps` commands of the policy behind a start; its last step has the reward."""
    commands = (*start, *(f"open box {member % 4 + 1}" for _ in range(steps)))
    success = reward > 0 if won is None else won
    transitions = []
    for place, command in enumerate(commands):
        last = place == len(commands) - 1
        action = Action(command) if place < len(start) else Action(command, (5,), (-0.5,), (None,))
        here, there = Observation(f"here {place}"), Observation(f"here {place + 1}")
        transitions.append(Transition(here, action, reward if last else 0.0, there, last, success and last))
    segment = Segment(np.arange(9, dtype=np.int32), tuple(Span(n, n + 1, n + 2) for n in range(len(commands))))
    stop = StopReason.DONE if success else StopReason.MAX_STEPS
    return Trajectory(task, member, tuple(transitions), (segment,), stop, version)


def group(
    task: Task, *rewards: float, version: int = 1, steps: int = 2, start: tuple[str, ...] = ()
) -> TrajectoryGroup:
    """Return a group with these returns."""
    episodes = (
        episode(task, reward, version=version, member=member, steps=steps, start=start)
        for member, reward in enumerate(rewards)
    )
    return TrajectoryGroup(task, tuple(episodes), version)
