"""Record an episode's prompts and responses as token segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from envrl.rendering.renderer import Prompt, PromptWriter, SegmentState
from envrl.types import Ids, Segment, Span, Trajectory, Transition


@dataclass(slots=True)
class Transcript:
    """The open segment of an episode, and the closed ones before it."""

    segment: SegmentState = field(default_factory=SegmentState)
    ids: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    answers: list[Span] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    def add(self, step: int, prompt: Prompt, response: Ids, text: str) -> None:
        """Record the prompt of a step, and the response with its `text` (`Renderer.text_of`)."""
        if prompt.fresh:
            self.close()
        start = len(self.ids) + len(prompt.ids)
        if prompt.answer is not None:
            self.answers.append(Span(step - 1, *(len(self.ids) + place for place in prompt.answer)))
        self.ids += [*prompt.ids, *response]
        self.spans.append(Span(step, start, start + len(response)))
        self.segment = replace(prompt.segment, length=len(self.ids), text=prompt.segment.text + text)

    def write(self, renderer: PromptWriter, past: Sequence[Transition], step: Transition) -> bool:
        """Record a known step; return False if it does not fit. A command without tokens becomes a bare response."""
        response = step.action.token_ids or renderer.respond(step.action.text)
        prompt = renderer.prompt(past, step.observation, self.segment, len(response))
        if prompt is not None:
            self.add(len(past), prompt, response, renderer.text_of(response))
        return prompt is not None

    def take_back(self) -> None:
        """Forget the last response: without the world's answer there is no step."""
        self.spans.pop()

    def close(self) -> None:
        """Close the open segment after its last response."""
        if self.spans and (stop := self.spans[-1].stop):  # a model behind an endpoint gives no tokens
            answers = tuple(answer for answer in self.answers if answer.stop <= stop)
            self.segments.append(Segment(np.array(self.ids[:stop], dtype=np.int32), tuple(self.spans), answers))
        self.ids, self.spans, self.answers, self.segment = [], [], [], SegmentState()


def write_segments(renderer: PromptWriter, steps: Sequence[Transition]) -> tuple[Segment, ...] | None:
    """Return an episode's segments as a rollout records them, or None if they do not fit the model's context."""
    transcript = Transcript()
    if not all(transcript.write(renderer, steps[:number], step) for number, step in enumerate(steps)):
        return None
    transcript.close()
    return tuple(transcript.segments)


def retold(renderer: PromptWriter, trajectory: Trajectory, told: str) -> Trajectory | None:
    """Return an episode as if its policy had been told `told` with the task; None if it does not fit the context."""
    if not trajectory.transitions:
        return trajectory
    first, *later = trajectory.transitions
    steps = (replace(first, observation=replace(first.observation, help=told)), *later)
    segments = write_segments(renderer, steps)
    return None if segments is None else replace(trajectory, transitions=steps, segments=segments)
