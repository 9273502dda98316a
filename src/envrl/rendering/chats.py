"""The renderer of chat models: a prompt format, written by the model's own chat template.

No token is ever written again: a response stays the ids that were sampled, and what the template writes behind it is
encoded by itself. Where the template writes what was fed in another way (thoughts stripped from earlier turns, turns
cut at the context limit, a response trimmed), a new segment begins with the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from envrl.errors import UserError
from envrl.models.template import ChatTemplate, cleaner
from envrl.rendering.formats import trim
from envrl.rendering.marks import last_turns, task_of
from envrl.rendering.prompts import (
    SEEN,
    Message,
    PromptFormat,
    find_format,
    question_messages,
    with_summary,
    with_thought,
)
from envrl.rendering.renderer import Form, Prompt, SegmentState
from envrl.rendering.responses import Thought
from envrl.types import Action, Completion, Example, Ids, Observation, Pair, Template, Transition


class ChatRenderer:
    """Chats as a prompt format asks for them: one that goes on with the episode, or one a step with the last turns."""

    def __init__(self, template: ChatTemplate, form: Form, context: int) -> None:
        self.form, self.context = form, context
        self._template, self._codec = template, template.codec
        self._format = _format_of(form, template)
        self._system = (Message("system", form.system_message),) if form.system_message else ()
        self._check_system()
        self._opened, self._close = template.opened, _close_of(template)
        # What the world and the model say is cleaned of special tokens' names, what the form says around it is not. A
        # model may well have the tags that a response is written with as special tokens.
        written = self._opened + self._close + self._format.write("", "")
        self._tags = frozenset(name for name in template.special if name in written)
        self._clean, self._clean_response = cleaner(template.special), cleaner(template.special - self._tags)
        self.end, self.stops = template.end, template.stops
        self.lead = template.encode_behind(self._close) if self._close else ()

    def prompt(
        self, past: Sequence[Transition], observation: Observation, segment: SegmentState, room: int
    ) -> Prompt | None:
        """Return the next prompt, or None where it and `room` further tokens do not fit even without earlier turns.

        A longest prompt (`rollout.prompt_tokens`, or what the context leaves) is kept to by cutting the oldest turns.
        """
        limit = min(self.form.prompt_tokens or self.context, self.context - room)
        make = self._of_a_step if self.form.layout == "steps" else self._of_a_chat
        return make(past, observation, segment, limit)

    def _of_a_step(
        self, past: Sequence[Transition], observation: Observation, segment: SegmentState, limit: int
    ) -> Prompt | None:
        task, turns, present = self._situation(past, observation)
        summary, shown = self._summary(past), self.form.show_admissible
        for cut in range(len(turns) + 1):
            ids = self._ids(self._format.messages(task, turns[cut:], present, shown, summary))
            if len(ids) <= limit:
                return Prompt(ids, True, SegmentState(len(ids)))
        return None

    def _of_a_chat(
        self, past: Sequence[Transition], observation: Observation, segment: SegmentState, limit: int
    ) -> Prompt | None:
        """Return what goes on from `segment`, or a new one; one that must be cut begins with the later half of it."""
        text = self._render(self._chat(past, observation, segment.first))
        if segment.length and text.startswith(segment.text):
            behind = text[len(segment.text) :]
            ids = self._template.encode_behind(behind)
            length = segment.length + len(ids)
            if length <= limit:
                return Prompt(ids, False, SegmentState(length, text, segment.first), self._answer(behind, observation))
        first = segment.first
        while True:
            ids = self._template.encode(text)
            if len(ids) <= limit:
                return Prompt(ids, True, SegmentState(len(ids), text, first))
            if first == len(past):
                return None
            first += (len(past) - first + 1) // 2
            text = self._render(self._chat(past, observation, first))

    def _chat(self, past: Sequence[Transition], observation: Observation, first: int) -> list[Message]:
        """Return the chat from turn `first` on, up to where the model speaks."""
        shown = self.form.show_admissible
        seen = [self._heard(each) for each in (*(step.observation for step in past[first:]), observation)]
        messages = [*self._format.messages(self._task(past, observation), (), seen[0], shown)]
        for step, following in zip(past[first:], seen[1:], strict=True):
            messages += [Message("assistant", self._said(step.action)), *self._format.follow_up(following, shown)]
        return messages

    def _answer(self, behind: str, observation: Observation) -> tuple[int, int] | None:
        """Return the tokens of the observation in what the chat went on with, None where the template altered it."""
        text = f"{SEEN}{trim(self._clean(observation.text))}"
        place = behind.find(text)
        if place < 0 or len(text) == len(SEEN):
            return None
        return self._template.tokens_within(behind, place + len(SEEN), place + len(text))

    def respond(self, command: str) -> Ids:
        """Return the format's shortest response that gives a command, any thought closed as soon as it is opened."""
        if self._tags:
            written = self._codec.encode_special(self._format.write("", self._clean(command)))
        else:
            written = self._codec.encode(self._format.write("", command))
        return (*self.lead, *written, self.end)

    def text_of(self, response: Ids) -> str:
        """Return a response's text, its end included."""
        return self._codec.decode(response)

    def read(self, completion: Completion) -> Action:
        """Return the command that a response holds, or its fault and no command; one that was cut off has a fault."""
        ids = completion.token_ids
        closed = ids[-1:] != () and ids[-1] in self.stops
        parsed = self._format.parse(self._codec.decode(ids[:-1] if closed else ids))
        fault = parsed.fault or ("" if closed else "unclosed")
        return Action(
            text="" if fault else parsed.command,
            token_ids=ids,
            logprobs=completion.logprobs,
            allowed=completion.allowed,
            fault=fault,
            imagined=fault == "imagined observation",
            summary=parsed.summary,
        )

    def rewrites(self, action: Action) -> bool:
        """Return whether the tokenizer would write a response's text in other ids than those that were sampled."""
        return self._codec.encode_special(self.text_of(action.token_ids)) != action.token_ids

    def pair(self, name: str, example: Example) -> Pair:
        """Return the chat that asks an auxiliary objective's question → its target."""
        transitions, clean = example.trajectory.transitions, self._clean
        past, observation = transitions[: example.step], transitions[example.step].observation
        task, turns, present = self._situation(past, observation)
        asked = question_messages(
            task if example.task else "",
            turns,
            present,
            self.form.lists_commands(example),
            command=None if example.command is None else clean(example.command),
            following=None if example.following is None else clean(example.following),
            choices=tuple(map(clean, example.choices)),
            question=example.question,
            summary=self._summary(past),
        )
        return Pair(self._ids(asked, self._close), (*self._plain(trim(example.target)), self.end), example.weight)

    def _situation(
        self, past: Sequence[Transition], observation: Observation
    ) -> tuple[str, list[tuple[Observation, str]], Observation]:
        """Return the task, the last turns of the `steps` layout, and the present observation, all cleaned."""
        turns = last_turns(past, self.form.history) if self.form.layout == "steps" else []
        heard = [(self._heard(seen), self._clean(said)) for seen, said in turns]
        return self._task(past, observation), heard, self._heard(observation)

    def _task(self, past: Sequence[Transition], observation: Observation) -> str:
        return self._clean(task_of(past, observation))

    def _heard(self, observation: Observation) -> Observation:
        """Return what prompts show of an observation, cleaned."""
        clean, text = self._clean, self._clean(observation.text)
        if not self.form.show_admissible or observation.admissible is None:
            return Observation(text)
        own = tuple(Template(clean(each.before), each.words, clean(each.after)) for each in observation.templates)
        return Observation(text, tuple(map(clean, observation.admissible)), templates=own)

    def _summary(self, past: Sequence[Transition]) -> str:
        return self._clean(next((step.action.summary for step in reversed(past) if step.action.summary), ""))

    def _said(self, action: Action) -> str:
        """Return the text of an earlier response, as the chat shows it: with the mark that its prompt ended with."""
        ids = action.token_ids
        if not ids:
            return self._opened + self._close + self._format.write("", self._clean(action.text))
        return self._opened + self._clean_response(self._codec.decode(ids[:-1] if ids[-1] in self.stops else ids))

    def _ids(self, messages: Sequence[Message], behind: str = "") -> Ids:
        return self._template.encode(self._render(messages) + behind)

    def _render(self, messages: Sequence[Message]) -> str:
        return self._template.render([*self._system, *messages])

    def _check_system(self) -> None:
        """Raise `UserError` where the template does not write the system message that the recipe asks for."""
        said = self.form.system_message
        if not said:
            return
        try:
            written = said.strip() in self._render([Message("user", "question")])
        except UserError:
            written = False
        if not written:
            raise UserError(
                "the model's chat template has no place for a system message: leave rollout.system_message out"
            )

    def _plain(self, text: str) -> Ids:
        return self._codec.encode(self._clean(text))


def _format_of(form: Form, template: ChatTemplate) -> PromptFormat:
    """Return the format that a form names, as a model with this template is asked and read."""
    found = find_format(form.format, **form.format_settings)
    if template.thought:
        thought = Thought(*template.thought, by="template" if template.opened else "model")
        return with_thought(found, thought, summary=form.summary)
    return with_summary(found) if form.summary else found


def _close_of(template: ChatTemplate) -> str:
    """Return what ends an empty thought behind the mark that a prompt ends with, as the models themselves write one."""
    if not template.opened or not template.thought:
        return ""
    opening, closing = template.thought
    return f"\n\n{closing}\n\n".removeprefix(template.opened.removeprefix(opening))
