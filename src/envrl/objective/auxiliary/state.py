"""State prediction: what will the world answer to this command?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envrl.registry import register
from envrl.types import Example, Trajectory, TrajectoryGroup, Transition, episodes_of


@register("auxiliary", "state", title="state prediction", asks="state")
def state(
    groups: Sequence[TrajectoryGroup],
    *,
    question: str = "What does the world answer? Write its next observation, word for word.",  # of a chat
    tag: str = "",  # the answer is written between <TAG> and </TAG>; empty: bare
    task: bool = True,  # the question says what the episode's task is
    commands: bool = True,  # it lists the admissible commands where the policy's prompt does
    last: bool = True,  # an episode's last transition is asked about, too
) -> Iterator[Example]:
    """Yield … sₜ, aₜ → sₜ₊₁ for every transition of every episode (EnvRL, arXiv 2606.17680).

    The target is the observation's text without the list of commands.
    """
    for trajectory, step, transition in steps_of(groups, last):
        yield Example(
            trajectory,
            step,
            question,
            in_tag(transition.next_observation.text, tag),
            command=transition.action.text,
            task=task,
            commands=commands,
        )


def steps_of(groups: Sequence[TrajectoryGroup], last: bool) -> Iterator[tuple[Trajectory, int, Transition]]:
    """Yield (episode, step, transition) for every transition; the last one of an episode only if `last`."""
    for trajectory in episodes_of(groups):
        for step, transition in enumerate(trajectory.transitions[: None if last else -1]):
            yield trajectory, step, transition


def in_tag(text: str, tag: str) -> str:
    """Return a text between <TAG> and </TAG>, or the bare text if the tag is empty."""
    return f"<{tag}>{text}</{tag}>" if tag else text
