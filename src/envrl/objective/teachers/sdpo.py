"""SDPO: the policy that was told how an attempt failed teaches the one that was not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envrl.objective.teachers.lesson import Lesson
from envrl.registry import register
from envrl.types import Trajectory, TrajectoryGroup


@register("teacher", "sdpo", title="SDPO")
def sdpo(
    groups: Sequence[TrajectoryGroup],
    *,
    solution: bool = True,  # tell the commands of another episode of the group that succeeded
    feedback: bool = True,  # where there is none, tell how the attempt ended and which commands were refused
    successes: bool = False,  # episodes that succeeded are taught, too, by another success
) -> Iterator[Lesson]:
    """Yield each failed episode with a success of its group, or else what went wrong (SDPO, arXiv 2601.20802)."""
    for group in groups:
        won = [trajectory for trajectory in group.trajectories if trajectory.success]
        for trajectory in group.trajectories:
            if trajectory.success and not successes:
                continue
            other = next((each for each in won if each is not trajectory), None) if solution else None
            if other is not None:
                yield Lesson(trajectory, solved(other))
            elif feedback and not trajectory.success and trajectory.transitions:
                yield Lesson(trajectory, failed(trajectory))


def solved(trajectory: Trajectory) -> str:
    """Return what is told of an episode that succeeded: its commands, one a line."""
    return "\n".join(["Correct solution:", *(step.action.text for step in trajectory.transitions)])


def failed(trajectory: Trajectory) -> str:
    """Return what is told of an episode that failed: how it ended, and the commands that the world refused."""
    steps = trajectory.transitions
    ended = "the world ended it" if steps[-1].done else "there was no time left"
    told = [f"Feedback on your unsuccessful attempt: after {len(steps)} commands {ended}."]
    refused = dict.fromkeys(step.action.text for step in steps if step.action.text and not step.admissible)
    if refused:
        told += ["The world did not accept:", *refused]
    if faults := sum(not step.action.well_formed for step in steps):
        told.append(f"Answers without a command in the form that was asked for: {faults}.")
    return "\n".join(told)
