"""Inverse dynamics: which command leads from this observation to that one?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from envrl.registry import register
from envrl.types import Example, Trajectory, TrajectoryGroup, episodes_of


@register("auxiliary", "inverse", title="inverse dynamics")
def inverse(
    groups: Sequence[TrajectoryGroup],
    *,
    question: str = "Which command did you give? Write the command alone.",  # of a chat
    choices: bool = False,  # the question lists the admissible commands, in an order that is drawn; the true one, too
) -> Iterator[Example]:
    """Yield … sₜ, sₜ₊₁ → aₜ, the parsed command, for every transition, won or lost (EnvRL, arXiv 2606.17680)."""
    for trajectory in episodes_of(groups):
        for step, transition in enumerate(trajectory.transitions):
            yield Example(
                trajectory,
                step,
                question,
                transition.action.text,
                following=transition.next_observation.text,
                choices=_choices(trajectory, step) if choices else (),
            )


def _choices(trajectory: Trajectory, step: int) -> tuple[str, ...]:
    """Return the commands that the world would have accepted and the one that was given, in a drawn order."""
    transition = trajectory.transitions[step]
    commands = list(dict.fromkeys([*(transition.observation.admissible or ()), transition.action.text]))
    Random(f"{trajectory.task.id}#{trajectory.member}/{step}").shuffle(commands)
    return tuple(commands)
