"""A chat format whose response is the command alone, or a thought in brackets and the command.

So a model that nobody has taught plays commands that the world accepts, and its responses have room for thoughts.
"""

from __future__ import annotations

import re
from typing import Any

from envrl.registry import register
from envrl.rendering.prompts import PromptFormat
from envrl.rendering.responses import Parsed

ASIDES: dict[str, Any] = {
    "model": {"chat_template": "chatml", "vocabulary": 600, "context": 1024},
    "rollout": {"format": "aside", "response_tokens": 32},
}


@register("format", "aside", bare=True, thinks=True)
def aside() -> PromptFormat:
    """The command, behind a thought in brackets if there is one."""
    return PromptFormat(
        "aside",
        "Answer with your command, behind a thought in brackets if you like:\n[a thought] your command",
        lambda response: Parsed(re.sub(r"^\[[^]]*\] ", "", response, flags=re.DOTALL)),
        lambda thought, command: f"[{thought}] {command}" if thought else command,
    )
