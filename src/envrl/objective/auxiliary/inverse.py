"""Inverse dynamics: which command leads from this observation to that one?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from envrl.objective.auxiliary.state import in_tag, steps_of
from envrl.registry import register
from envrl.types import Example, Trajectory, TrajectoryGroup


@register("auxiliary", "inverse", title="inverse dynamics", asks="inverse")
def inverse(
    groups: Sequence[TrajectoryGroup],
    *,
    question: str = "Which command did you give? Write the command alone.",  # of a chat
    choices: bool = False,  # the question lists the admissible commands, in an order that is drawn; the true one, too
    tag: str = "",  # the answer is written between <TAG> and </TAG>; empty: bare
    task: bool = True,  # the question says what the episode's task is
    commands: bool = True,  # it lists the admissible commands where the policy's prompt does
    last: bool = True,  # an episode's last transition is asked about, too
) -> Iterator[Example]:
    """Yield … sₜ, sₜ₊₁ → aₜ, the parsed command, for every transition of every episode (EnvRL, arXiv 2606.17680)."""
    for trajectory, step, transition in steps_of(groups, last):
        yield Example(
            trajectory,
            step,
            question,
            in_tag(transition.action.text, tag),
            following=transition.next_observation.text,
            choices=listed(trajectory, step) if choices else (),
            task=task,
            commands=commands,
        )


def listed(trajectory: Trajectory, step: int) -> tuple[str, ...]:
    """Return the admissible commands and the one that was given, shuffled."""
    transition = trajectory.transitions[step]
    commands = list(dict.fromkeys([*(transition.observation.admissible or ()), transition.action.text]))
    Random(f"{trajectory.task.id}#{trajectory.member}/{step}").shuffle(commands)
    return tuple(commands)
