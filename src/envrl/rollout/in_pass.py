"""An episode's answers as the policy's own rows hold them: what is scored where state prediction is trained in pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envrl.objective.auxiliary.state import state
from envrl.rendering.renderer import Renderer
from envrl.rollout.transcript import Transcript
from envrl.types import Pair, Trajectory, TrajectoryGroup


def pairs_in_pass(trajectories: Sequence[Trajectory], renderer: Renderer) -> list[Pair]:
    """Return (the policy's own sequence up to an answer → the answer), a pair a transition.

    Where an answer begins a new segment, and so stands in no row, the pair is state prediction's own.
    """
    return [pair for trajectory in trajectories for pair in _of_episode(renderer, trajectory)]


def _of_episode(renderer: Renderer, trajectory: Trajectory) -> Iterator[Pair]:
    transcript, steps = Transcript(), trajectory.transitions
    asked = state([TrajectoryGroup(trajectory.task, (trajectory,))])
    for number, (step, example) in enumerate(zip(steps, asked, strict=True)):
        told = transcript.write(renderer, steps[:number], step)
        following = renderer.prompt(steps[: number + 1], step.next_observation, transcript.segment, 0) if told else None
        if following is None or following.answer is None:
            yield renderer.pair("state", example)
        else:
            start, stop = following.answer
            yield Pair((*transcript.ids, *following.ids[:start]), following.ids[start:stop])
