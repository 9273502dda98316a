"""An episode's tokens as they come about: prompts and responses, laid into segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from envrl.rendering.renderer import Prompt, PromptWriter, SegmentState
from envrl.types import Ids, Segment, Span, Transition


@dataclass(slots=True)
class Transcript:
    """The present segment of an episode, and those before it."""

    segment: SegmentState = field(default_factory=SegmentState)
    ids: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    answers: list[Span] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    def add(self, step: int, prompt: Prompt, response: Ids, text: str) -> None:
        """Record what was fed before a step's response, and the response with its `text` (`Renderer.text_of`)."""
        if prompt.fresh:
            self.close()
        start = len(self.ids) + len(prompt.ids)
        if prompt.answer is not None:
            self.answers.append(Span(step - 1, *(len(self.ids) + place for place in prompt.answer)))
        self.ids += [*prompt.ids, *response]
        self.spans.append(Span(step, start, start + len(response)))
        self.segment = replace(prompt.segment, length=len(self.ids), text=prompt.segment.text + text)

    def write(self, renderer: PromptWriter, past: Sequence[Transition], step: Transition) -> bool:
        """Record a step that is known already, a bare response where it has no tokens; False where it does not fit."""
        response = step.action.token_ids or renderer.respond(step.action.text)
        prompt = renderer.prompt(past, step.observation, self.segment, len(response))
        if prompt is not None:
            self.add(len(past), prompt, response, renderer.text_of(response))
        return prompt is not None

    def take_back(self) -> None:
        """Forget the last response: what the world never answered is no step."""
        self.spans.pop()

    def close(self) -> None:
        """End the present segment behind its last response."""
        if self.spans and (stop := self.spans[-1].stop):  # a model behind an endpoint has no tokens
            answers = tuple(answer for answer in self.answers if answer.stop <= stop)
            self.segments.append(Segment(np.array(self.ids[:stop], dtype=np.int32), tuple(self.spans), answers))
        self.ids, self.spans, self.answers, self.segment = [], [], [], SegmentState()


def write_segments(renderer: PromptWriter, steps: Sequence[Transition]) -> tuple[Segment, ...] | None:
    """Return an episode's segments as play records them, or None where they do not fit the model's context."""
    transcript = Transcript()
    if not all(transcript.write(renderer, steps[:number], step) for number, step in enumerate(steps)):
        return None
    transcript.close()
    return tuple(transcript.segments)
