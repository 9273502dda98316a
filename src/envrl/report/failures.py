"""Where an episode failed, from its own record alone: the commands that were given and what the world answered.

The classes and their rules are described in docs/viewer.md. Wrong object and wrong place are told from commands and a
goal in the words of ALFWorld's games; elsewhere these two are never said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

CLASSES = {
    "invalid": "Invalid commands",
    "loop": "In a loop",
    "object": "Wrong object",
    "place": "Wrong place",
    "time": "Out of time",
    "context": "Context full",
    "ended": "Ended by the world",
    "world": "World failed",
}
"""Classes of failures with their titles, in the order in which they are shown."""

INVALID_SHARE = 1 / 3
"""Share of an episode's commands that the world did not take, from which on it failed by them."""
REPEATED_SHARE = 1 / 2
"""Share of the commands in an episode's second half that repeat an earlier one, from which on it is in a loop."""
_NOTHING = "Nothing happens."
_TAKE = re.compile(r"take (?P<thing>[a-z]+)(?: \d+)? from ", re.IGNORECASE)
_PUT = re.compile(r"(?:move|put) (?P<thing>[a-z]+)(?: \d+)? (?:to|in/on|in|on) (?P<place>[a-z]+)", re.IGNORECASE)


def failure_of(episode: Record, steps: Sequence[Record]) -> str:
    """Return the class of a lost episode, empty for one that was won; the first rule that holds decides."""
    if episode.get("success"):
        return ""
    ending = {"set aside": "world", "context": "context"}.get(str(episode.get("stop_reason")))
    if ending:
        return ending
    refused = sum(is_invalid(step) for step in steps)
    if steps and refused >= INVALID_SHARE * len(steps):
        return "invalid"
    repeated = repeats(steps)[len(steps) // 2 :]
    if len(steps) > 3 and sum(repeated) >= REPEATED_SHARE * len(repeated):
        return "loop"
    return _misplaced(steps) or ("ended" if episode.get("stop_reason") == "done" else "time")


def is_invalid(step: Record) -> bool:
    """Return whether the world did not take a command, or the response had none."""
    answer = str(step.get("next_observation", ""))
    return bool(step.get("fault")) or step.get("admissible") is False or answer.startswith(_NOTHING)


def repeats(steps: Sequence[Record]) -> list[bool]:
    """Return for each step whether the same command was given to the same observation earlier in the episode."""
    seen: set[tuple[str, str]] = set()
    found = []
    for step in steps:
        key = str(step.get("observation", "")), str(step.get("action", ""))
        found.append(key in seen)
        seen.add(key)
    return found


def goal_of(steps: Sequence[Record]) -> str:
    """Return the last line of the first observation, which holds the goal in most worlds."""
    text = str(steps[0].get("observation", "")) if steps else ""
    return (text.strip().splitlines() or [""])[-1][:200]


def _misplaced(steps: Sequence[Record]) -> str:
    """Return whether the wrong object was taken, or the right one put in the wrong place, in ALFWorld's words."""
    goal = set(re.findall(r"[a-z]+", goal_of(steps).lower()))
    commands = [str(step.get("action", "")) for step in steps if not is_invalid(step)]
    taken = [match["thing"].lower() for command in commands if (match := _TAKE.match(command))]
    if taken and not goal & set(taken):
        return "object"
    put = [match for command in commands if (match := _PUT.match(command)) and match["thing"].lower() in goal]
    return "place" if put and put[-1]["place"].lower() not in goal else ""
