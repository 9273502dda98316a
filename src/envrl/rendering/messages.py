"""Prompts for a model behind an endpoint, whose tokens are unknown: one chat per turn, with responses as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envrl.rendering.marks import last_turns, task_of
from envrl.rendering.prompts import Message, PromptFormat
from envrl.rendering.renderer import Prompt, SegmentState
from envrl.types import Action, Completion, Ids, Observation, Transition


@dataclass(frozen=True, slots=True)
class MessageWriter:
    """Writes every turn as a new chat that shows the last `history` turns; see `PromptWriter`.

    A malformed response becomes the empty command, which means nothing to the world.
    """

    form: PromptFormat
    history: int = 2
    show_admissible: bool = True
    system_message: str = ""
    stops: frozenset[int] = frozenset()

    def prompt(self, past: Sequence[Transition], observation: Observation, segment: SegmentState, room: int) -> Prompt:
        """Return the next chat; only the endpoint knows whether it fits the context."""
        system = (Message("system", self.system_message),) if self.system_message else ()
        task, turns = task_of(past, observation), last_turns(past, self.history)
        summary = next((step.action.summary for step in reversed(past) if step.action.summary), "")
        messages = self.form.messages(task, turns, observation, self.show_admissible, summary)
        return Prompt((), True, SegmentState(), messages=(*system, *messages))

    def respond(self, command: str, thought: str = "") -> Ids:
        return ()

    def text_of(self, response: Ids) -> str:
        return ""

    def read(self, completion: Completion) -> Action:
        """Parse a completion's text into its command, or its fault."""
        parsed = self.form.parse(completion.text)
        fault = parsed.fault or ("unclosed" if completion.cut else "")
        command, imagined = "" if fault else parsed.command, fault == "imagined observation"
        return Action(command, fault=fault, imagined=imagined, summary=parsed.summary)
