"""Parse a chat model's response into one command or a named fault. Every text is one or the other; nothing is guessed.

A blank thought is accepted: only its marks are required.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal
from unicodedata import category

FAULTS = {
    "empty": "nothing but blanks",
    "no action": "no command where the form has one",
    "no thought": "no thought in its marks before the action",
    "no plan": "no plan in its tags before the action",
    "no switch": "neither KEEP nor SWITCH in its tags before everything else",
    "no sub-goal": "no sub-goal in its tags before the action",
    "no summary": "no summary in its tags before everything else, where one is asked for",
    "unclosed thought": "the thought that the model's chat template or the model itself opened is never closed",
    "unclosed": "a tag is opened and not closed, or the response was cut off at its longest",
    "several actions": "more than one action",
    "imagined observation": "behind the action it writes the world's answer itself: Observation …, You …",
    "text after the action": "behind the action it goes on with anything else",
    "stray text": "text before the thought or plan, or between it and the action",
    "several lines": "the command goes over several lines",
    "control characters": "the command holds control characters or half of a surrogate pair",
    "not JSON": "it does not begin with a JSON value: a fence or a sentence before the object, a missing bracket",
    "wrong fields": 'it is JSON, and not just {"name": "act", "arguments": {"command": …}}',
}
"""Every fault of a response, with its meaning."""
_IMAGINED = re.compile(r"<?[Oo]bservation\b|You\s")


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed response: its command or its fault (a key of `FAULTS`), and its summary if it has one.

    `act` is the number of characters from where the part with the command begins, if the form tells it from a plan
    before it; `switches` is True for a new sub-goal.
    """

    command: str = ""
    fault: str = ""
    summary: str = ""
    act: int = 0
    switches: bool = False


@dataclass(frozen=True, slots=True)
class Thought:
    """The marks around a model's thought, and who writes the opening one.

    `by` "template": every prompt ends with it; "model": a response may begin with it; "unknown": one of the two.
    """

    opening: str = "<think>"
    closing: str = "</think>"
    by: Literal["template", "model", "unknown"] = "unknown"


def parse_thinking(response: str, parse: Callable[[str], Parsed], thought: Thought) -> Parsed:
    """Skip the model's own thought and read the rest with `parse`.

    The thought is required only if the chat template opens it; without one `parse` reads the whole response.
    """
    text = response.strip()
    before, closed, rest = text.partition(thought.closing)
    if not text:
        return Parsed(fault="empty")
    opened = thought.by == "template" or text.startswith(thought.opening)
    if opened and not closed:
        return Parsed(fault="unclosed thought")
    orphan = thought.by == "unknown" and closed and thought.opening not in before
    return parse(rest if opened or orphan else response)


def parse_bare(response: str) -> Parsed:
    """Read a response that is only the command."""
    first, *others = response.strip().splitlines() or [""]
    if not first:
        return Parsed(fault="empty")
    if others and _IMAGINED.match("\n".join(others).strip()):
        return Parsed(fault="imagined observation")
    return Parsed(fault="several lines") if others else _command(first)


def parse_think(response: str) -> Parsed:
    """Read `<think>…</think><action>…</action>`."""
    return _tagged(response, "think", "no thought")


def parse_think_or_act(response: str) -> Parsed:
    """Read `<action>…</action>`, with or without a thought in its tags before it."""
    text = response.strip()
    return parse_think(text) if text.startswith("<think>") else _acted(text)


def parse_plan(response: str) -> Parsed:
    """Read `<plan>…</plan><action>…</action>`."""
    return _tagged(response, "plan", "no plan")


def parse_subgoal(response: str) -> Parsed:
    """Read `<switch>…</switch><subgoal>…</subgoal><action>…</action>`; the sub-goal is the summary."""
    text = response.strip()
    if not text:
        return Parsed(fault="empty")
    before, _, rest = text.partition("<switch>")
    said, closed, rest = rest.partition("</switch>")
    if before or not closed or said.strip().upper() not in ("KEEP", "SWITCH"):
        return Parsed(fault="no switch" if "<action>" in text else "no action")
    parsed = _tagged(rest, "subgoal", "no sub-goal")
    if parsed.fault:
        return parsed
    subgoal = rest.partition("<subgoal>")[2].partition("</subgoal>")[0].strip()
    act = len(response) - response.index("<action>", response.index("</subgoal>"))
    return replace(parsed, summary=subgoal, act=act, switches=said.strip().upper() == "SWITCH")


def parse_react(response: str) -> Parsed:
    """Read `Thought: …` and, on a line of its own, `Action: …`."""
    lines = [line.strip() for line in response.strip().splitlines()]
    if not lines:
        return Parsed(fault="empty")
    place = next((i for i, line in enumerate(lines) if line.startswith("Action:")), None)
    if place is None:
        return Parsed(fault="no action")
    if not any(line.startswith("Thought:") for line in lines[:place]):
        return Parsed(fault="no thought")
    if not lines[0].startswith("Thought:"):
        return Parsed(fault="stray text")
    command, after = lines[place].removeprefix("Action:"), lines[place + 1 :]
    more = any(line.startswith("Action:") for line in after)
    return _command(command, after="\n".join(after), more=more)


def parse_json(response: str) -> Parsed:
    """Read `{"name": "act", "arguments": {"command": …}}`."""
    text = response.strip()
    if not text:
        return Parsed(fault="empty")
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return Parsed(fault="not JSON")
    after = text[end:]
    if after.strip() and not isinstance(value, dict):
        return Parsed(fault="not JSON")  # "3 doors" begins with a number
    match value:
        case {"name": "act", "arguments": {"command": str(command), **others}, **rest} if not others and not rest:
            return _command(command, after=after, more="{" in after)
    return Parsed(fault="wrong fields")


def parse_summary(response: str, parse: Callable[[str], Parsed]) -> Parsed:
    """Read `<summary>…</summary>`, and the rest with `parse`."""
    text = response.strip()
    if not text:
        return Parsed(fault="empty")
    before, opened, rest = text.partition("<summary>")
    if before or not opened:
        return Parsed(fault="no summary")
    summary, closed, rest = rest.partition("</summary>")
    if not closed:
        return Parsed(fault="unclosed")
    return replace(parse(rest), summary=summary.strip())


def _tagged(response: str, lead: str, missing: str) -> Parsed:
    """Read `<lead>…</lead><action>…</action>`; the text inside the first part is free."""
    text = response.strip()
    if not text:
        return Parsed(fault="empty")
    before, opened, rest = text.partition(f"<{lead}>")
    if not opened or "<action>" in before:
        return Parsed(fault=missing if "<action>" in text else "no action")
    _, closed, rest = rest.partition(f"</{lead}>")
    if not closed:
        return Parsed(fault="unclosed")
    return _acted(rest, stray=bool(before.strip()))


def _acted(text: str, *, stray: bool = False) -> Parsed:
    """Read `<action>…</action>`; `stray`: there is other text before the part that was read already."""
    before, opened, rest = text.partition("<action>")
    if not opened:
        return Parsed(fault="no action")
    if stray or before.strip():
        return Parsed(fault="stray text")
    command, closed, after = rest.partition("</action>")
    if "<action>" in command:
        return Parsed(fault="several actions")
    if not closed:
        return Parsed(fault="unclosed")
    return _command(command, after=after, more="<action>" in after)


def _command(text: str, *, after: str = "", more: bool = False) -> Parsed:
    """Check a command and the text `after` it; `more`: that text has another action."""
    command, after = text.strip(), after.strip()
    if not command:
        return Parsed(fault="no action")
    if _IMAGINED.match(after):
        return Parsed(fault="imagined observation")
    if after:
        return Parsed(fault="several actions" if more else "text after the action")
    if len(command.splitlines()) > 1:
        return Parsed(fault="several lines")
    if any(category(character) in ("Cc", "Cs") for character in command):
        return Parsed(fault="control characters")
    return Parsed(command)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    """Return a JSON object as a dict, or None if a field occurs twice."""
    return dict(pairs) if len({name for name, _ in pairs}) == len(pairs) else None


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
