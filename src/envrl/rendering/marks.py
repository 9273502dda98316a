"""The renderer with special marks, for models that learn them from demonstrations (`envrl.rendering.formats`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from envrl.rendering.formats import action_ids, observation_ids, steps_prompt, task_text, trim
from envrl.rendering.kinds import kinds_of
from envrl.rendering.renderer import Form, Prompt, SegmentState
from envrl.types import Action, Example, Ids, Observation, Pair, Transition

if TYPE_CHECKING:
    from envrl.models.tokenizer import Codec
    from envrl.types import Completion

_ASKING = ("state", "inverse")
"""Auxiliary objectives with a mark of their own, which replaces the question."""
_ANSWER = re.compile(r"\S\s*\n\s*\S|(?:\A|\s)You\s")
"""Matches a response that goes on after its command: another line, or a sentence that begins with "You"."""


class MarksRenderer:
    """Writes `<observation> s₀ <action> a₀ <end> …`, the whole episode as one segment or each step as its own."""

    def __init__(self, codec: Codec, form: Form, context: int) -> None:
        self.form, self.context, self._codec = form, context, codec
        self.end = codec.marks["end"]
        self.stops = frozenset({self.end})
        self.lead: Ids = ()
        self.kinds = lru_cache(maxsize=4096)(lambda ids: kinds_of(self._codec.pieces(ids)))

    def prompt(
        self, past: Sequence[Transition], observation: Observation, segment: SegmentState, room: int
    ) -> Prompt | None:
        """Return the next prompt, or None if it and `room` more tokens do not fit the context."""
        form = self.form
        fresh, answer = form.layout == "steps" or not past, None
        if form.layout == "steps":
            turns = last_turns(past, form.history)
            ids = steps_prompt(self._codec, task_of(past, observation), turns, observation, form.show_admissible)
        else:
            beside = self._beside(past, observation)
            ids = observation_ids(self._codec, observation, form.show_admissible, beside)
            words = len(self._codec.encode(trim(observation.text)))
            answer = (1, 2 + words) if past else None  # the text and the mark after it
        length = len(ids) + (0 if fresh else segment.length)
        return None if length + room > self.context else Prompt(ids, fresh, SegmentState(length), answer)

    def _beside(self, past: Sequence[Transition], observation: Observation) -> str:
        """Return what stands behind an observation: a repeated task; and once, behind the first, what is told."""
        if not self.form.repeat_task:
            return "" if past else observation.help
        return task_text(past[0].observation) if past else task_of(past, observation)

    def respond(self, command: str, thought: str = "") -> Ids:
        """Return a command's tokens and the closing mark; nothing with a thought, for which there is no room."""
        return () if thought else action_ids(self._codec, command)

    def text_of(self, response: Ids) -> str:
        """Return the empty text: whether a segment continues does not depend on its text."""
        return ""

    def read(self, completion: Completion) -> Action:
        """Parse a response: its command is the text before the first mark.

        A response without the closing mark, or with another mark inside, is not well formed. A response *imagines* an
        observation if sampling was unrestricted and it has a mark that begins one (`<observation>` or `<next>`), text
        on a second line, or a sentence that begins with "You".
        """
        marks, ids = self._codec.marks, completion.token_ids
        begins = {marks["observation"], marks["next"]}
        body = ids[:-1] if ids[-1:] == (self.end,) else ids
        first_mark = next((i for i, token in enumerate(body) if token in self._codec.mark_ids), len(body))
        text = self._codec.decode(body[:first_mark])
        fault = "mark inside" if first_mark < len(body) else "unclosed" if len(body) == len(ids) else ""
        return Action(
            text=text,
            token_ids=ids,
            logprobs=completion.logprobs,
            allowed=completion.allowed,
            fault=fault,
            imagined=completion.free and (not begins.isdisjoint(body) or _ANSWER.search(text) is not None),
        )

    def texts(self, ids: Ids) -> list[str]:
        """Return the text of each token of a sequence."""
        return self._codec.texts(ids)

    def rewrites(self, action: Action) -> bool:
        """Return whether the tokenizer would encode a well-formed response differently from its sampled ids."""
        return action.well_formed and self.respond(action.text) != action.token_ids

    def pair(self, name: str, example: Example) -> Pair:
        """Return `<state> … sₜ <action> aₜ <next>` → `sₜ₊₁ <end>`, `<inverse> … sₜ <next> sₜ₊₁ <action>` → `aₜ <end>`.

        An objective without a mark of its own begins with its question. The prompt ends with the choices and a mark:
        `<action>` if the example gives the following observation but not the command, else `<next>`.
        """
        marks, encode = self._codec.marks, self._codec.encode
        ids = [marks[name]] if name in _ASKING else [*encode(example.question)]
        ids += self._situation(example)
        if example.command is not None:
            ids += [marks["action"], *encode(example.command)]
        if example.following is not None:
            ids += [marks["next"], *encode(trim(example.following))]
        if example.choices:
            ids += [marks["commands"], *encode("\n".join(example.choices))]
        names_command = example.following is not None and example.command is None
        ids.append(marks["action" if names_command else "next"])
        return Pair(tuple(ids), (*encode(trim(example.target)), self.end), example.weight)

    def _situation(self, example: Example) -> Ids:
        """Return the policy's prompt before the step, without the mark that asks for an action."""
        transitions = example.trajectory.transitions
        past, observation = transitions[: example.step], transitions[example.step].observation
        steps = self.form.layout == "steps"
        turns = last_turns(past, self.form.history) if steps else []
        shown = self.form.lists_commands(example)
        task = task_text(transitions[0].observation) if example.task else ""
        return steps_prompt(self._codec, task, turns, observation, shown)[:-1]


def task_of(past: Sequence[Transition], observation: Observation) -> str:
    """Return the task's sentence, read from the first observation of the episode, and the help given with it."""
    first = past[0].observation if past else observation
    return f"{task_text(first)}\n\n{first.help}" if first.help else task_text(first)


def last_turns(past: Sequence[Transition], count: int) -> list[tuple[Observation, str]]:
    """Return (observation, command) of the last `count` steps, oldest first."""
    return [(step.observation, step.action.text) for step in past[max(0, len(past) - count) :]]
