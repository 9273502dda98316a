"""The renderer protocol, which writes episodes in tokens, with special marks or with a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from envrl.types import Action, Example, Ids, Observation, Pair, Transition

if TYPE_CHECKING:
    from envrl.rendering.kinds import Kinds
    from envrl.rendering.prompts import Message
    from envrl.types import Completion

MARKS = "marks"
"""The format with special marks, the only one that is not a chat."""


@dataclass(frozen=True, slots=True)
class Form:
    """What prompts show of an episode, and how; most fields are keys of the recipe's `rollout` table."""

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
    """The state of an open segment: its number of tokens, its text if the renderer needs it, and its first turn."""

    length: int = 0
    text: str = ""
    first: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of one response, as token ids.

    `fresh`: it opens a new segment, instead of continuing the open one; `segment`: the state of the segment after it;
    `answer`: the range of `ids` that is the world's answer to the previous step, if the segment holds that step;
    `messages`: the chat, in place of `ids`, for a model whose tokens are unknown.
    """

    ids: Ids
    fresh: bool
    segment: SegmentState
    answer: tuple[int, int] | None = None
    messages: tuple[Message, ...] = ()


class PromptWriter(Protocol):
    """Writes prompts and parses responses.

    `past` are the steps so far, oldest first; an action has tokens if a model played it, and none if a script did.
    """

    @property
    def stops(self) -> frozenset[int]:
        """The ids that end a response."""
        ...

    def prompt(
        self, past: Sequence[Transition], observation: Observation, segment: SegmentState, room: int
    ) -> Prompt | None:
        """Return the next prompt, or None if it and `room` more tokens do not fit the context."""
        ...

    def respond(self, command: str, thought: str = "") -> Ids:
        """Return the shortest response with this command, behind this thought, including its end.

        It is empty if the form has no room for the thought, or if token ids are unknown.
        """
        ...

    def text_of(self, response: Ids) -> str:
        """Return a response's text as it is appended to `SegmentState.text`."""
        ...

    def read(self, completion: Completion) -> Action:
        """Parse a response into an action."""
        ...


class Renderer(PromptWriter, Protocol):
    """A prompt writer with a local model's tokenizer; it also writes the rows of auxiliary objectives."""

    @property
    def form(self) -> Form: ...
    @property
    def context(self) -> int:
        """The longest sequence of the model, in tokens."""
        ...

    @property
    def end(self) -> int:
        """The id that closes a response."""
        ...

    @property
    def lead(self) -> Ids:
        """The tokens that begin every response of `respond`: the end of a thought that the prompt opens."""
        ...

    def texts(self, ids: Ids) -> list[str]:
        """Return the text of each token of a sequence."""
        ...

    def kinds(self, ids: Ids) -> Kinds:
        """Return what kind of token each one of a sequence is, in `TOKEN_KINDS`."""
        ...

    def rewrites(self, action: Action) -> bool:
        """Return whether the tokenizer would encode a response's text differently from its sampled ids."""
        ...

    def pair(self, name: str, example: Example) -> Pair:
        """Return an example of the auxiliary objective `name` in tokens: situation and question → target.

        The situation is the task and the observation before the step, without what the policy was told beside it, on
        which the world's answers do not depend; in the layout `steps` also the last turns and the
        commands, if the policy's prompt has them.
        """
        ...
