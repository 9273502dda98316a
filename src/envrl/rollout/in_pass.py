"""The world's answers inside the policy's own rows, to score state prediction that is trained in the policy's pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envrl.objective.auxiliary.state import state
from envrl.rendering.renderer import Renderer
from envrl.rollout.transcript import Transcript
from envrl.types import Pair, Trajectory, TrajectoryGroup


def pairs_in_pass(trajectories: Sequence[Trajectory], renderer: Renderer) -> list[Pair]:
    """Return one pair per transition: the policy's own sequence up to the world's answer, and that answer.

    An answer that begins a new segment is in no row; its pair is the question of the `state` objective.
    """
    return [pair for trajectory in trajectories for pair in _of_episode(renderer, trajectory)]


def _of_episode(renderer: Renderer, trajectory: Trajectory) -> Iterator[Pair]:
    transcript, steps = Transcript(), trajectory.transitions
    examples = state([TrajectoryGroup(trajectory.task, (trajectory,))])
    for number, (step, example) in enumerate(zip(steps, examples, strict=True)):
        fits = transcript.write(renderer, steps[:number], step)
        following = renderer.prompt(steps[: number + 1], step.next_observation, transcript.segment, 0) if fits else None
        if following is None or following.answer is None:
            yield renderer.pair("state", example)
        else:
            start, stop = following.answer
            yield Pair((*transcript.ids, *following.ids[:start]), following.ids[start:stop])
