"""The two auxiliary tasks of EnvRL as (prompt, target) pairs, one for every transition, won or lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from envrl.rollout.transcript import Transcript
from envrl.rollout.wording import Pair, Wording
from envrl.types import Trajectory, Transition


def state_pairs(trajectories: Sequence[Trajectory], wording: Wording) -> list[Pair]:
    """Return state prediction's pairs: … sₜ, aₜ → sₜ₊₁ (its text without the list of commands).

    With `Form.in_pass` they are the policy's own sequence up to each answer, and the answer's tokens in it.
    """
    if not wording.form.in_pass:
        return separate_state_pairs(trajectories, wording)
    return [pair for trajectory in trajectories for pair in _in_pass(wording, trajectory.transitions)]


def separate_state_pairs(trajectories: Sequence[Trajectory], wording: Wording) -> list[Pair]:
    """Return state prediction's pairs as sequences of their own, whatever `Form.in_pass` says."""
    return [wording.state_pair(t.transitions[:n], step) for t in trajectories for n, step in enumerate(t.transitions)]


def inverse_pairs(trajectories: Sequence[Trajectory], wording: Wording) -> list[Pair]:
    """Return inverse dynamics' pairs: … sₜ, sₜ₊₁ → aₜ (the parsed command and the closing mark)."""
    return [wording.inverse_pair(t.transitions[:n], step) for t in trajectories for n, step in enumerate(t.transitions)]


def _in_pass(wording: Wording, steps: Sequence[Transition]) -> Iterator[Pair]:
    """Yield what the policy's own rows predict; a pair of its own where an answer begins a new segment."""
    transcript = Transcript()
    for number, step in enumerate(steps):
        told = transcript.write(wording, steps[:number], step)
        following = wording.prompt(steps[: number + 1], step.next_observation, transcript.told, 0) if told else None
        if following is None or following.answer is None:
            yield wording.state_pair(steps[:number], step)
        else:
            start, stop = following.answer
            yield Pair((*transcript.ids, *following.ids[:start]), following.ids[start:stop])
