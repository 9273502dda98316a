"""The two auxiliary tasks of EnvRL as (prompt, target) pairs, one for every transition, won or lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from envrl.models.tokenizer import Codec
from envrl.rollout.formats import Ids, action_ids, inverse_ids, state_ids, task_text, trim
from envrl.types import Trajectory, Transition


@dataclass(frozen=True, slots=True)
class Pair:
    """What is given and what is to be predicted, in tokens."""

    prompt: Ids
    target: Ids


def state_pairs(trajectories: Sequence[Trajectory], codec: Codec, layout: str = "concat") -> list[Pair]:
    """Return state prediction's pairs: … sₜ, aₜ → sₜ₊₁ (its text without the list of commands).

    In the `concat` layout what is given is (task, sₜ, aₜ); in `steps` it is the policy's own prompt and the action.
    """
    pairs = []
    for task, step, context in _steps(trajectories, layout):
        following = step.next_observation.text
        if context is None:
            pairs.append(Pair(*state_ids(codec, task, step.observation.text, step.action.text, following)))
        else:
            marks = codec.marks
            prompt = (marks["state"], *context, *codec.encode(step.action.text), marks["next"])
            pairs.append(Pair(prompt, (*codec.encode(trim(following)), marks["end"])))
    return pairs


def inverse_pairs(trajectories: Sequence[Trajectory], codec: Codec, layout: str = "concat") -> list[Pair]:
    """Return inverse dynamics' pairs: … sₜ, sₜ₊₁ → aₜ (the parsed command and the closing mark)."""
    pairs = []
    for task, step, context in _steps(trajectories, layout):
        following = step.next_observation.text
        if context is None:
            pairs.append(Pair(*inverse_ids(codec, task, step.observation.text, following, step.action.text)))
        else:
            marks = codec.marks
            prompt = (marks["inverse"], *context[:-1], marks["next"], *codec.encode(trim(following)), marks["action"])
            pairs.append(Pair(prompt, action_ids(codec, step.action.text)))
    return pairs


def _steps(trajectories: Sequence[Trajectory], layout: str) -> Iterator[tuple[str, Transition, Ids | None]]:
    """Yield (task, transition, the policy's prompt in the `steps` layout) of every step."""
    for trajectory in trajectories:
        if not trajectory.transitions:
            continue
        task = task_text(trajectory.transitions[0].observation)
        contexts: dict[int, Ids] = {}
        if layout == "steps":
            for segment in trajectory.segments:
                for span in segment.spans:
                    contexts[span.step] = tuple(segment.token_ids[: span.start].tolist())
        for number, step in enumerate(trajectory.transitions):
            yield task, step, contexts.get(number)


def observation_spans(trajectory: Trajectory, codec: Codec) -> list[list[tuple[int, int]]]:
    """Return for each segment the token ranges of the observations that the world gave in it after an action.

    Only texts count: neither marks nor the list of commands. They are what `state_rows = "in_pass"` predicts.
    """
    result = []
    for segment in trajectory.segments:
        ranges = []
        for span, following in zip(segment.spans, segment.spans[1:], strict=False):
            text = codec.encode(trim(trajectory.transitions[span.step].next_observation.text))
            start = span.stop + 1  # after <observation>
            if start + len(text) < following.start:
                ranges.append((start, start + len(text)))
        result.append(ranges)
    return result
