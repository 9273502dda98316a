"""Builds games of TextWorld, one for each line of standard input; run as a process of its own by `textworld_games`.

TextWorld's generator iterates over sets of strings, so its games depend on Python's hash seed as well as on their own:
only a process started with a fixed one makes the same game on every machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

SUFFIX = ".z8"


def build(request: dict[str, Any]) -> None:
    """Build one game: its compiled file and its description appear at `request["path"]`, the latter by rename."""
    generator = sys.modules["textworld.generator"]
    challenges = sys.modules["textworld.challenges"].CHALLENGES
    path = Path(request["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"building-{os.getpid()}-{path.stem}{SUFFIX}")
    options = generator.GameOptions()
    options.seeds, options.path, options.file_ext = request["seed"], str(aside), SUFFIX
    game = challenges[request["challenge"]][1](request["settings"], options)
    generator.compile_game(game, options)
    aside.with_suffix(".ni").unlink(missing_ok=True)
    aside.with_suffix(".json").replace(path.with_suffix(".json"))
    aside.replace(path)


def main() -> None:
    """Answer each request, a line of JSON, with an empty line, or with what went wrong."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what the generator prints is no answer
        import textworld.challenges  # pyright: ignore[reportMissingImports]
        import textworld.generator  # noqa: F401  # pyright: ignore[reportMissingImports]

        for line in sys.stdin:
            try:
                build(json.loads(line))
                answer = ""
            except Exception as error:  # whatever it is, the asking process says it to the user
                answer = f"{type(error).__name__}: {error}".replace("\n", " ")
            answers.write(f"{answer}\n")
            answers.flush()


if __name__ == "__main__":
    main()
