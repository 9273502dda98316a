"""State prediction: what will the world answer to this command?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envrl.registry import register
from envrl.types import Example, TrajectoryGroup, episodes_of


@register("auxiliary", "state", title="state prediction")
def state(
    groups: Sequence[TrajectoryGroup],
    *,
    question: str = "What does the world answer? Write its next observation, word for word.",  # of a chat
) -> Iterator[Example]:
    """Yield … sₜ, aₜ → sₜ₊₁ for every transition, won or lost (EnvRL, arXiv 2606.17680).

    The target is the observation's text without the list of commands.
    """
    for trajectory in episodes_of(groups):
        for step, transition in enumerate(trajectory.transitions):
            yield Example(trajectory, step, question, transition.next_observation.text, command=transition.action.text)
