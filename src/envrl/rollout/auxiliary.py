"""The two auxiliary tasks of EnvRL as (prompt, target) pairs, one for every transition, won or lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from envrl.models.tokenizer import Codec
from envrl.rollout.formats import Ids, action_ids, after_text, observation_ids, steps_prompt, task_text, trim
from envrl.types import Trajectory, Transition


@dataclass(frozen=True, slots=True)
class Pair:
    """What is given and what is to be predicted, in tokens."""

    prompt: Ids
    target: Ids


@dataclass(frozen=True, slots=True)
class Form:
    """The form of auxiliary rows: `concat` gives (task, sₜ, …), `steps` gives the policy's own prompt at step t, …

    With `in_pass`, state prediction's pairs are the policy's own sequence: the whole episode so far → sₜ₊₁.
    """

    layout: str = "concat"
    history: int = 2
    show_admissible: bool = False
    repeat_task: bool = False
    in_pass: bool = False


def state_pairs(trajectories: Sequence[Trajectory], codec: Codec, form: Form) -> list[Pair]:
    """Return state prediction's pairs: … sₜ, aₜ → sₜ₊₁ (its text without the list of commands)."""
    if form.in_pass:
        return [pair for trajectory in trajectories for pair in _in_pass_pairs(trajectory, codec, form)]
    marks = codec.marks
    return [
        Pair(
            (marks["state"], *context, marks["action"], *codec.encode(step.action.text), marks["next"]),
            (*codec.encode(trim(step.next_observation.text)), marks["end"]),
        )
        for context, step in _contexts(trajectories, codec, form)
    ]


def inverse_pairs(trajectories: Sequence[Trajectory], codec: Codec, form: Form) -> list[Pair]:
    """Return inverse dynamics' pairs: … sₜ, sₜ₊₁ → aₜ (the parsed command and the closing mark)."""
    marks = codec.marks
    return [
        Pair(
            (
                *(marks["inverse"], *context),
                marks["next"],
                *codec.encode(trim(step.next_observation.text)),
                marks["action"],
            ),
            action_ids(codec, step.action.text),
        )
        for context, step in _contexts(trajectories, codec, form)
    ]


def _in_pass_pairs(trajectory: Trajectory, codec: Codec, form: Form) -> Iterator[Pair]:
    """Yield the policy's sequence up to each answer, and the answer's text: what `observation_spans` counts."""
    ids: list[int] = []
    steps = trajectory.transitions
    repeated = task_text(steps[0].observation) if steps and form.repeat_task else ""
    for step in steps:
        response = step.action.token_ids or action_ids(codec, step.action.text)
        ids += [*observation_ids(codec, step.observation, form.show_admissible, repeated), *response]
        ending = after_text(codec, step.next_observation, form.show_admissible, repeated)[0]
        yield Pair((*ids, codec.marks["observation"]), (*codec.encode(trim(step.next_observation.text)), ending))


def _contexts(trajectories: Sequence[Trajectory], codec: Codec, form: Form) -> Iterator[tuple[Ids, Transition]]:
    """Yield (what precedes the action, without the mark that asks for it; the transition) of every step."""
    for trajectory in trajectories:
        steps = trajectory.transitions
        task = task_text(steps[0].observation) if steps else ""
        for number, step in enumerate(steps):
            past = steps[max(0, number - form.history) : number] if form.layout == "steps" else ()
            turns = [(turn.observation, turn.action.text) for turn in past]
            shown = form.layout == "steps" and form.show_admissible
            yield steps_prompt(codec, task, turns, step.observation, shown)[:-1], step


def observation_spans(trajectory: Trajectory, codec: Codec) -> list[list[tuple[int, int]]]:
    """Return for each segment the token ranges of the observations that the world gave in it after an action.

    A text and the mark that ends it count, the list of commands does not; it is what `state_rows = "in_pass"` predicts.
    """
    result = []
    for segment in trajectory.segments:
        ranges = []
        for span, following in zip(segment.spans, segment.spans[1:], strict=False):
            text = codec.encode(trim(trajectory.transitions[span.step].next_observation.text))
            start = span.stop + 1  # after <observation>
            if text and start + len(text) < following.start:
                ranges.append((start, start + len(text) + 1))
        result.append(ranges)
    return result
