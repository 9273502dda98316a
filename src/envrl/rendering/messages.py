"""Prompts for a model whose tokens are not known: the messages of a chat, a turn at a time, and answers as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envrl.rendering.marks import last_turns, task_of
from envrl.rendering.prompts import Message, PromptFormat
from envrl.rendering.renderer import Prompt, SegmentState
from envrl.types import Action, Completion, Ids, Observation, Transition


@dataclass(frozen=True, slots=True)
class MessageWriter:
    """Writes every turn as a chat of its own, with the last `history` turns in it; see `PromptWriter`.

    A response at fault gives its world the empty command, which means nothing to it.
    """

    form: PromptFormat
    history: int = 2
    show_admissible: bool = True
    system_message: str = ""
    stops: frozenset[int] = frozenset()

    def prompt(self, past: Sequence[Transition], observation: Observation, segment: SegmentState, room: int) -> Prompt:
        """Return the next chat; whether it fits the context is for the endpoint to say."""
        system = (Message("system", self.system_message),) if self.system_message else ()
        task, turns = task_of(past, observation), last_turns(past, self.history)
        messages = self.form.messages(task, turns, observation, self.show_admissible)
        return Prompt((), True, SegmentState(), messages=(*system, *messages))

    def respond(self, command: str) -> Ids:
        return ()

    def text_of(self, response: Ids) -> str:
        return ""

    def read(self, completion: Completion) -> Action:
        """Return the command that a text holds, or its fault."""
        parsed = self.form.parse(completion.text)
        fault = parsed.fault or ("unclosed" if completion.cut else "")
        return Action("" if fault else parsed.command, fault=fault, imagined=fault == "imagined observation")
