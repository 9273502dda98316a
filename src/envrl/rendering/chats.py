"""The renderer of chat models: a prompt format, written with the model's own chat template.

Nothing is ever re-tokenised: a response keeps its sampled ids, and the template's text after it is encoded by itself.
If the template changes text that was fed before (thoughts stripped from earlier turns, turns cut at the context limit,
a response trimmed), a new segment begins with the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from envrl.errors import UserError
from envrl.models.template import ChatTemplate, cleaner
from envrl.rendering.formats import task_text, trim
from envrl.rendering.kinds import kinds_of
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
    """Writes one chat that continues through the episode, or a new chat for each step with the last turns."""

    def __init__(self, template: ChatTemplate, form: Form, context: int) -> None:
        self.form, self.context = form, context
        self._template, self._codec = template, template.codec
        self._format = _format_of(form, template)
        self._system = (Message("system", form.system_message),) if form.system_message else ()
        self._check_system()
        self._opened, self._close = template.opened, _close_of(template)
        # Texts of the world and the model are cleaned of the names of special tokens; the format's own text is not,
        # since some models have the format's tags as special tokens.
        written = self._opened + self._close + self._format.write("", "")
        self._tags = frozenset(name for name in template.special if name in written)
        self._clean, self._clean_response = cleaner(template.special), cleaner(template.special - self._tags)
        self.end, self.stops = template.end, template.stops
        self.lead = template.encode_behind(self._close) if self._close else ()
        self.kinds = lru_cache(maxsize=4096)(lambda ids: kinds_of(self._codec.pieces(ids)))

    def prompt(
        self, past: Sequence[Transition], observation: Observation, segment: SegmentState, room: int
    ) -> Prompt | None:
        """Return the next prompt, or None if it and `room` more tokens do not fit even without earlier turns.

        The oldest turns are cut to keep the prompt within `rollout.prompt_tokens` and the context.
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
        """Continue `segment`, or open a new one; a prompt that is too long drops the older half of its turns."""
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
        """Return the chat from turn `first` on, up to the model's next response."""
        shown = self.form.show_admissible
        seen = [self._cleaned(each) for each in (*(step.observation for step in past[first:]), observation)]
        messages = [*self._format.messages(self._task(past, observation), (), seen[0], shown)]
        for step, following in zip(past[first:], seen[1:], strict=True):
            messages += [Message("assistant", self._response(step.action)), *self._format.follow_up(following, shown)]
        return messages

    def _answer(self, behind: str, observation: Observation) -> tuple[int, int] | None:
        """Return the token range of the observation in the continuation, or None if the template altered it."""
        text = f"{SEEN}{trim(self._clean(observation.text))}"
        place = behind.find(text)
        if place < 0 or len(text) == len(SEEN):
            return None
        return self._template.tokens_within(behind, place + len(SEEN), place + len(text))

    def respond(self, command: str, thought: str = "") -> Ids:
        """Return the format's shortest response with a command, behind a thought; empty if it has no room for that.

        The thought stands where the format asks for one, else inside the one that the chat template opens. One with
        which the response would not be read as the command has no room.
        """
        lead, thought = self.lead, self._clean(thought)
        text = self._format.write(thought, self._clean(command) if self._tags else command)
        if thought not in text:
            if not self._close:
                return ()
            lead = self._template.encode_behind(thought + self._close)
        written = self._codec.encode_special(text) if self._tags else self._codec.encode(text)
        response = (*lead, *written, self.end)
        return response if not thought or self.read(Completion(response)).text == command else ()

    def text_of(self, response: Ids) -> str:
        """Return a response's text, including its end."""
        return self._codec.decode(response)

    def read(self, completion: Completion) -> Action:
        """Parse a response into its command, or a fault and no command; a response that was cut off has a fault."""
        ids = completion.token_ids
        closed = ids[-1:] != () and ids[-1] in self.stops
        text = self._codec.decode(ids[:-1] if closed else ids)
        parsed = self._format.parse(text)
        fault = parsed.fault or ("" if closed else "unclosed")
        return Action(
            text="" if fault else parsed.command,
            token_ids=ids,
            logprobs=completion.logprobs,
            allowed=completion.allowed,
            fault=fault,
            imagined=fault == "imagined observation",
            summary=parsed.summary,
            plan=self._begun_before(ids, len(text) - parsed.act) if parsed.act and not fault else 0,
            switches=parsed.switches,
        )

    def _begun_before(self, ids: Ids, place: int) -> int:
        """Return the number of tokens that begin before a place in the text."""
        ends = accumulate(len(text) for text in self._codec.texts(ids))
        return 1 + sum(end < place for end in ends)

    def texts(self, ids: Ids) -> list[str]:
        """Return the text of each token of a sequence."""
        return self._codec.texts(ids)

    def rewrites(self, action: Action) -> bool:
        """Return whether the tokenizer would encode a response's text differently from its sampled ids."""
        return self._codec.encode_special(self.text_of(action.token_ids)) != action.token_ids

    def pair(self, name: str, example: Example) -> Pair:
        """Return an auxiliary objective's question as a chat, and its target."""
        transitions, clean = example.trajectory.transitions, self._clean
        past, observation = transitions[: example.step], transitions[example.step].observation
        _, turns, present = self._situation(past, observation)
        messages = question_messages(
            clean(task_text(transitions[0].observation)) if example.task else "",
            turns,
            present,
            self.form.lists_commands(example),
            command=None if example.command is None else clean(example.command),
            following=None if example.following is None else clean(example.following),
            choices=tuple(map(clean, example.choices)),
            question=clean(example.question),
            summary=f"{self._format.recalls}:\n{summary}" if (summary := self._summary(past)) else "",
        )
        return Pair(self._ids(messages, self._close), (*self._plain(trim(example.target)), self.end), example.weight)

    def _situation(
        self, past: Sequence[Transition], observation: Observation
    ) -> tuple[str, list[tuple[Observation, str]], Observation]:
        """Return the task, the last turns (layout `steps` only) and the current observation, all cleaned."""
        turns = last_turns(past, self.form.history) if self.form.layout == "steps" else []
        cleaned = [(self._cleaned(seen), self._clean(command)) for seen, command in turns]
        return self._task(past, observation), cleaned, self._cleaned(observation)

    def _task(self, past: Sequence[Transition], observation: Observation) -> str:
        return self._clean(task_of(past, observation))

    def _cleaned(self, observation: Observation) -> Observation:
        """Return an observation with the parts that prompts show, cleaned."""
        clean, text = self._clean, self._clean(observation.text)
        if not self.form.show_admissible or observation.admissible is None:
            return Observation(text)
        own = tuple(Template(clean(each.before), each.words, clean(each.after)) for each in observation.templates)
        return Observation(text, tuple(map(clean, observation.admissible)), templates=own)

    def _summary(self, past: Sequence[Transition]) -> str:
        return self._clean(next((step.action.summary for step in reversed(past) if step.action.summary), ""))

    def _response(self, action: Action) -> str:
        """Return an earlier response as the chat shows it: with the thought mark that ended its prompt."""
        ids = action.token_ids
        if not ids:
            return self._opened + self._close + self._format.write("", self._clean(action.text))
        return self._opened + self._clean_response(self._codec.decode(ids[:-1] if ids[-1] in self.stops else ids))

    def _ids(self, messages: Sequence[Message], behind: str = "") -> Ids:
        return self._template.encode(self._render(messages) + behind)

    def _render(self, messages: Sequence[Message]) -> str:
        return self._template.render([*self._system, *messages])

    def _check_system(self) -> None:
        """Raise `UserError` if the template does not write the recipe's system message."""
        message = self.form.system_message
        if not message:
            return
        try:
            written = message.strip() in self._render([Message("user", "question")])
        except UserError:
            written = False
        if not written:
            raise UserError(
                "the model's chat template has no place for a system message: leave rollout.system_message out"
            )

    def _plain(self, text: str) -> Ids:
        return self._codec.encode(self._clean(text))


def _format_of(form: Form, template: ChatTemplate) -> PromptFormat:
    """Return the prompt format that `form` names, adapted to the thoughts of this template's model."""
    chat = find_format(form.format, **form.format_settings)
    if template.thought:
        thought = Thought(*template.thought, by="template" if template.opened else "model")
        return with_thought(chat, thought, summary=form.summary)
    return with_summary(chat) if form.summary else chat


def _close_of(template: ChatTemplate) -> str:
    """Return the text that closes the thought that a prompt opens, written as the models write an empty thought."""
    if not template.opened or not template.thought:
        return ""
    opening, closing = template.thought
    return f"\n\n{closing}\n\n".removeprefix(template.opened.removeprefix(opening))
