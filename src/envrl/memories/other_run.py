"""What the memory of another run keeps, for a run that begins with it (`memory.start`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from envrl.config.schema import Config
from envrl.errors import UserError
from envrl.memories.file import read_memory
from envrl.registry import find
from envrl.replays.other_run import check_same, texts_depend_on


def begin(config: Config, load: Callable[[Any], None]) -> None:
    """Pass the state of the memory of the run `memory.start` to `load`.

    Entries are texts, so the model and its tokenizer may be others. Raises `UserError` if the run has no memory of this
    kind, or one of another world or version.
    """
    called = f"memory.start = '{config.memory.start}'"
    if not hasattr(find("memory", config.memory.name).target, "load"):
        raise UserError(
            f"{called} has no effect, since the memory '{config.memory.name}' keeps nothing: choose another, or leave "
            "it out"
        )
    checkpoint = check_same(config, "memory", Path(config.memory.start), texts_depend_on)
    state = read_memory(checkpoint) if checkpoint else None
    if state is None:
        raise UserError(f"{called} has no checkpoint with a memory in it: wait for its first one")
    try:
        load(state)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{called} is of another version of envrl ({error})") from error
