"""How episodes are written in tokens: what a renderer offers, whichever marks or chat template it writes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from envrl.types import Action, Example, Ids, Observation, Pair, Transition

if TYPE_CHECKING:
    from envrl.rendering.prompts import Message
    from envrl.types import Completion

MARKS = "marks"
"""The format that is no chat: marks of our own."""


@dataclass(frozen=True, slots=True)
class Form:
    """What of an episode is written, and how; the keys are those of the recipe's `rollout`."""

    layout: str = "concat"
    history: int = 2
    show_admissible: bool = False
    repeat_task: bool = False
    format: str = MARKS
    format_settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    summary: bool = False
    prompt_tokens: int = 0
    system_message: str = ""
    template_arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def lists_commands(self, example: Example) -> bool:
        """Return whether an example's situation lists the admissible commands, as the policy's prompt does."""
        return self.layout == "steps" and self.show_admissible and example.commands and not example.choices


@dataclass(frozen=True, slots=True)
class SegmentState:
    """What a segment of an episode holds so far: its tokens' number, its text where that is needed, its first turn."""

    length: int = 0
    text: str = ""
    first: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be fed before a response.

    `fresh`: it opens a new segment, since it does not go on from what was fed; `segment`: what the segment holds then;
    `answer`: the range of `ids` that is the world's answer to the step before, where the segment holds that step;
    `messages`: the chat, in place of `ids`, for a model whose tokens are not known.
    """

    ids: Ids
    fresh: bool
    segment: SegmentState
    answer: tuple[int, int] | None = None
    messages: tuple[Message, ...] = ()


class PromptWriter(Protocol):
    """Writes prompts and reads responses.

    `past` are the steps so far, oldest first; a step's action carries tokens where a model played it and none where a
    script did.
    """

    @property
    def stops(self) -> frozenset[int]:
        """All ids at which a response ends."""
        ...

    def prompt(
        self, past: Sequence[Transition], observation: Observation, segment: SegmentState, room: int
    ) -> Prompt | None:
        """Return the next prompt, or None where it and `room` further tokens do not fit the context."""
        ...

    def respond(self, command: str) -> Ids:
        """Return the response that is this command and nothing else, its end included; empty where ids are unknown."""
        ...

    def text_of(self, response: Ids) -> str:
        """Return a response's text as `SegmentState.text` counts it."""
        ...

    def read(self, completion: Completion) -> Action:
        """Return what a response does."""
        ...


class Renderer(PromptWriter, Protocol):
    """Writes episodes in the tokens of a model that is at hand: prompts, and the rows that it learns from."""

    @property
    def form(self) -> Form: ...
    @property
    def context(self) -> int:
        """The model's longest sequence, tokens."""
        ...

    @property
    def end(self) -> int:
        """The id that closes a response."""
        ...

    @property
    def lead(self) -> Ids:
        """What stands before the command in every response of `respond`: the end of a thought that a prompt opens."""
        ...

    def rewrites(self, action: Action) -> bool:
        """Return whether the tokenizer would write a response's text in other ids than those that were sampled."""
        ...

    def pair(self, name: str, example: Example) -> Pair:
        """Return a row of the auxiliary objective `name` in tokens: situation and question → target.

        The situation is the task and the observation before the step, in the layout `steps` the last turns and the
        commands, too, where the policy's prompt has them.
        """
        ...
