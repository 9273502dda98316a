"""A memory in a file that people can read: a line that says what it is, then an entry a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envrl.errors import UserError
from envrl.files import write_text

NAME = "memory.jsonl"
"""The file in a checkpoint's folder."""
FORMAT = 1
"""Version of the file's form, and of what entries mean."""


def write_memory(folder: Path, state: Mapping[str, Any] | None) -> None:
    """Write the state of a run's memory into a folder, if it has one."""
    if state is None:
        return
    about = {key: value for key, value in state.items() if key != "entries"}
    lines = [json.dumps(line, ensure_ascii=False) for line in (about, *state["entries"])]
    write_text(folder / NAME, "".join(f"{line}\n" for line in lines))


def read_memory(folder: Path) -> dict[str, Any] | None:
    """Return the state that `write_memory` wrote, None if there is none; raise `UserError` for another version's."""
    file = folder / NAME
    if not file.is_file():
        return None
    try:
        about, *entries = (json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1])
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']} in place of {FORMAT}")
        return {**about, "entries": entries}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"the memory in {file} is of another version of envrl ({error})") from error
