"""Prompt formats for chat models: the user message of each turn, and the form of the response.

Pure functions of text; the model's chat template turns a chat into tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from envrl.errors import UserError
from envrl.registry import KINDS, Entry, blame, find, register
from envrl.rendering.formats import trim
from envrl.rendering.responses import (
    Parsed,
    Thought,
    parse_bare,
    parse_json,
    parse_plan,
    parse_react,
    parse_subgoal,
    parse_summary,
    parse_think,
    parse_think_or_act,
    parse_thinking,
)
from envrl.types import Observation

NO_COMMAND = "(none: the answer was not in the form that was asked for)"
"""Shown in the history in place of the command of a malformed response."""
SEEN = "What you see now:\n"
"""The heading of an observation."""


class Message(NamedTuple):
    """One message of a chat: its role ("system", "user" or "assistant") and its content."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """A form of prompts and responses: the instruction `asks`, the parser of responses, and the writer of them.

    `parse` never raises. `write(thought, command)` leaves the thought out if the form has no place for it. `recalls` is
    the heading of the model's own notes in a prompt.
    """

    name: str
    asks: str
    parse: Callable[[str], Parsed]
    write: Callable[[str, str], str]
    recalls: str = "Your summary of what came before"

    def messages(
        self,
        task: str,
        history: Sequence[tuple[Observation, str]],
        observation: Observation,
        show_admissible: bool = True,
        summary: str = "",
    ) -> tuple[Message, ...]:
        """Return the chat of one turn: a user message with the task, the last turns, the observation, its commands.

        `history` holds (observation, command), oldest first; the command of a malformed response is empty. `summary` is
        the model's own summary of the earlier turns.
        """
        parts = _situation(task, history, observation, f"{self.recalls}:\n{summary}" if summary else "")
        return (_user(*parts, *_commands(observation, show_admissible), self.asks),)

    def follow_up(self, observation: Observation, show_admissible: bool = True) -> tuple[Message, ...]:
        """Return the messages that continue a chat after the model's response."""
        return (_user(_seen(observation), *_commands(observation, show_admissible)),)


def question_messages(
    task: str,
    history: Sequence[tuple[Observation, str]],
    observation: Observation,
    show_admissible: bool,
    *,
    command: str | None = None,
    following: str | None = None,
    choices: Sequence[str] = (),
    question: str = "",
    summary: str = "",
) -> tuple[Message, ...]:
    """Return a chat that asks about a step: its situation, the given parts of the step, and the question."""
    parts = [*_situation(task, history, observation, summary), *_commands(observation, show_admissible)]
    if command is not None:
        parts.append(f"Your command now: {command or NO_COMMAND}")
    if following is not None:
        parts.append(f"What you see after your next command:\n{trim(following)}")
    if choices:
        parts.append("\n".join(["It was one of these commands, one a line:", *choices]))
    return (_user(*parts, *([question] if question else [])),)


def _user(*parts: str) -> Message:
    return Message("user", "\n\n".join(parts))


def _situation(
    task: str, history: Sequence[tuple[Observation, str]], observation: Observation, summary: str
) -> list[str]:
    parts = ["You act in a world that is described in words. Every turn you give it one command."]
    if task and task != trim(observation.text):
        parts.append(f"Your task: {task}")
    if summary:
        parts.append(summary)
    if history:
        parts.append("Your last turns, oldest first:")
        parts += [f"Observation: {trim(seen.text)}\nCommand: {said or NO_COMMAND}" for seen, said in history]
    return [*parts, _seen(observation)]


def _seen(observation: Observation) -> str:
    return f"{SEEN}{trim(observation.text)}"


def _commands(observation: Observation, show: bool) -> list[str]:
    if not show or observation.admissible is None:
        return []
    listed = (*map(str, observation.templates), *observation.admissible)
    own = ", where <words> stands for words of your own" if observation.templates else ""
    return ["\n".join([f"The commands that the world accepts now, one a line{own}:", *listed])]


def with_summary(form: PromptFormat) -> PromptFormat:
    """Return the format with a summary first, in which the model notes what its own later turns need to know."""
    asks = (
        "First write between <summary> and </summary> what you will need to know in later turns: it takes the place of "
        "all turns that are not shown any more. Behind it goes your answer.\n"
    )
    return PromptFormat(
        form.name,
        asks + form.asks,
        lambda response: parse_summary(response, form.parse),
        lambda thought, command: f"<summary></summary>{form.write(thought, command)}",
    )


def with_thought(form: PromptFormat, thought: Thought, *, summary: bool = False) -> PromptFormat:
    """Return the format for a model that thinks in marks of its own before it answers (`summary`: and summarises).

    The text in those marks also counts as the thought that `tags` asks for. If the template opens the thought, a
    response begins inside it.
    """
    inner = replace(form, parse=parse_think_or_act) if form.name == "tags" else form
    if thought.by == "template" and form.name == "tags":
        inner = replace(inner, write=lambda _, command: f"<action>{command}</action>")
    if summary:
        inner = with_summary(inner)
    return replace(inner, parse=lambda response: parse_thinking(response, inner.parse, thought))


def find_format(name: str, **settings: Any) -> PromptFormat:
    """Return a format by name, with its settings; raise `UserError` if it is unknown or fails."""
    entry = find("format", name)
    with blame(entry):
        form = entry.target(**settings)
    if not isinstance(form, PromptFormat):
        raise UserError(f"the {entry.called} is no chat: it gives {type(form).__name__}, and not a PromptFormat")
    return form if entry.ships else _tried(entry, _guarded(entry, form))


def _tried(entry: Entry, form: PromptFormat) -> PromptFormat:
    """Return a user's format; raise `UserError` if it does not read what it writes."""
    if not isinstance(form.asks, str):
        raise UserError(f"the {entry.called} asks by {form.asks!r:.60}, which is no text")
    written = form.write("", "look")
    if form.parse(written).command != "look":
        raise UserError(f"the {entry.called} writes the command 'look' as {written!r:.80} and does not read it as that")
    return form


def _guarded(entry: Entry, form: PromptFormat) -> PromptFormat:
    """Return a user's format with its exceptions and wrong results turned into a `UserError`."""

    def parse(response: str) -> Parsed:
        with blame(entry):
            parsed = form.parse(response)
        if not isinstance(parsed, Parsed):
            raise UserError(f"the {entry.called} reads a response as {type(parsed).__name__}, and not as Parsed")
        return parsed

    def write(thought: str, command: str) -> str:
        with blame(entry):
            written = form.write(thought, command)
        if not isinstance(written, str):
            raise UserError(f"the {entry.called} writes a response as {written!r:.60}, which is no text")
        return written

    return replace(form, parse=parse, write=write)


def _write_call(_: str, command: str) -> str:
    return json.dumps({"name": "act", "arguments": {"command": command}}, ensure_ascii=False)


@register("format", "tags", thinks=True)
def tags_format() -> PromptFormat:
    """A thought and a command in tags, as in the published protocol."""
    return PromptFormat(
        "tags",
        "Think first about what you know and what the task still needs, between <think> and </think>. Then give one "
        "command between <action> and </action>. Write nothing else:\n"
        "<think>your thoughts</think><action>your command</action>",
        parse_think,
        lambda thought, command: f"<think>{thought}</think><action>{command}</action>",
    )


@register("format", "action", bare=True)
def action_format() -> PromptFormat:
    """Only the command."""
    return PromptFormat(
        "action",
        "Answer with your command alone, on one line, without quotes or any other word.",
        parse_bare,
        lambda _, command: command,
    )


@register("format", "react", thinks=True)
def react_format() -> PromptFormat:
    """A thought and a command, one line each."""
    return PromptFormat(
        "react",
        "Answer in two lines, a thought and one command, and stop there; the world gives the next observation:\n"
        "Thought: your thoughts\nAction: your command",
        parse_react,
        lambda thought, command: f"Thought: {thought}\nAction: {command}",
    )


@register("format", "json")
def json_format() -> PromptFormat:
    """A call of the tool `act` as one JSON object."""
    return PromptFormat(
        "json",
        "Answer by calling the tool act, which takes your command, a string: one JSON object of just this form, "
        'without a fence or any text around it:\n{"name": "act", "arguments": {"command": "your command"}}',
        parse_json,
        _write_call,
    )


@register("format", "plan", thinks=True)
def plan_format() -> PromptFormat:
    """A plan of the remaining steps, and the command that begins it, in tags."""
    return PromptFormat(
        "plan",
        "First write your plan, the steps that are left until the task is done, between <plan> and </plan>. Then give "
        "the one command that begins it between <action> and </action>. Write nothing else:\n"
        "<plan>the steps that are left</plan><action>your command</action>",
        parse_plan,
        lambda thought, command: f"<plan>{thought}</plan><action>{command}</action>",
    )


@register("format", "subgoal", plans=True)
def subgoal_format() -> PromptFormat:
    """Whether the sub-goal is kept, the sub-goal, and a command towards it, in tags."""
    return PromptFormat(
        "subgoal",
        "Work towards a sub-goal, which takes a few commands. First say between <switch> and </switch> whether you "
        "KEEP the one you have or SWITCH to another. Then write the sub-goal that you follow now between <subgoal> and "
        "</subgoal>: the same words again if you keep it. Then give one command between <action> and </action>. Write "
        "nothing else:\n<switch>SWITCH</switch><subgoal>your sub-goal</subgoal><action>your command</action>",
        parse_subgoal,
        lambda _, command: f"<switch>SWITCH</switch><subgoal></subgoal><action>{command}</action>",
        recalls="Your sub-goal until now",
    )


@register("format", "marks")
def marks_format() -> None:
    """Not a chat: special marks that a model learns from demonstrations (`envrl.rendering.marks`)."""


FORMATS = {name: find_format(name) for name in KINDS["format"].built_in if name != "marks"}
"""The built-in chat formats by name."""
