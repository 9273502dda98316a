"""Token layouts with special marks around the world's texts, for the policy and two auxiliary objectives.

    policy    <observation> s₀ <action> a₀ <end> <observation> s₁ <action> a₁ <end> …
              repeat_task: <observation> s₀ <task> task <action> a₀ <end> <observation> s₁ <task> task <action> …
    state     <state> <task> task <observation> sₜ <action> aₜ <next> sₜ₊₁ <end>
    inverse   <inverse> <task> task <observation> sₜ <next> sₜ₊₁ <action> aₜ <end>

Each auxiliary objective begins with a mark of its own, so that its form never leaks into the policy's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from envrl.types import Ids, Observation

if TYPE_CHECKING:
    from envrl.models.tokenizer import Codec

_BANNER = re.compile(r"\A-= Welcome to TextWorld, ALFRED! =-\s*")
_TASK = re.compile(r"Your task is to: (.+)|Instruction: \[SEP\] (.+?) \[SEP\]")  # household games | WebShop


def trim(text: str) -> str:
    """Return an observation's text without the banner of the original ALFWorld engine."""
    return _BANNER.sub("", text)


def task_text(first: Observation) -> str:
    """Return the task's sentence from the first observation, or its whole text if there is no such sentence."""
    match = _TASK.search(first.text)
    return match[1] or match[2] if match else trim(first.text)


def commands_ids(codec: Codec, observation: Observation, show: bool) -> Ids:
    """Return the list of admissible commands as prompt tokens, empty if it is not shown."""
    if not show or observation.admissible is None:
        return ()
    listed = (*map(str, observation.templates), *observation.admissible)
    return (codec.marks["commands"], *codec.encode("\n".join(listed)))


def observation_ids(codec: Codec, observation: Observation, show_commands: bool = False, task: str = "") -> Ids:
    """Return `<observation> text … <action>`, with the commands and the task's sentence after the text if asked for."""
    text = codec.encode(trim(observation.text))
    return (codec.marks["observation"], *text, *after_text(codec, observation, show_commands, task))


def after_text(codec: Codec, observation: Observation, show_commands: bool, task: str) -> Ids:
    """Return the tokens after an observation's text, up to the mark that asks for an action."""
    shown = commands_ids(codec, observation, show_commands)
    repeated = (codec.marks["task"], *codec.encode(task)) if task else ()
    return (*shown, *repeated, codec.marks["action"])


def action_ids(codec: Codec, command: str) -> Ids:
    """Return a command's tokens and the closing mark."""
    return (*codec.encode(command), codec.marks["end"])


def steps_prompt(
    codec: Codec, task: str, history: Sequence[tuple[Observation, str]], observation: Observation, show_commands: bool
) -> Ids:
    """Return the prompt of one step in the `steps` layout: the task if given, the last turns, the observation."""
    ids: list[int] = [codec.marks["task"], *codec.encode(task)] if task else []
    for earlier, command in history:
        ids += [*observation_ids(codec, earlier), *action_ids(codec, command)]
    return (*ids, *observation_ids(codec, observation, show_commands))
