"""`envrl COMMAND …`: find the command, run it, and turn how it ended into an exit status and at most one sentence."""

from __future__ import annotations

import errno
import io
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from envrl import __version__, ranks
from envrl.cli.launch import AGAIN, OTHERS, was_launched
from envrl.errors import Interrupted, MemoryShort, OthersEnded, RunError, UserError, suggest

COMMANDS = {
    "train": "train an agent by a recipe, or go on with a run",
    "sweep": "arms and seeds as a queue of runs, which ends in a comparison",
    "eval": "success rate of a run, a checkpoint, a model, or a script, with a 95 % interval",
    "panel": "a model on a pinned set of tasks, as one record that can be had again",
    "report": "one self-contained HTML file about a run",
    "view": "read runs in the browser: curves, where episodes fail, episodes turn by turn",
    "tail": "the progress lines of a run, live",
    "compare": "several runs as one table, seeds together",
    "export": "the model of a run as a folder that transformers loads; a LoRA adapter is merged",
    "recipes": "list the recipes that ship, or print one with every key",
    "play": "play a world in the terminal",
    "data": "downloaded data: what there is, getting it, checking it",
    "models": "models by name, and any of the hub: where they lie, getting them, checking them",
    "check-env": "the contract test of any world",
    "serve": "a world as an OpenEnv server",
    "bench": "throughput, as JSON",
    "doctor": "what is installed and found; whether a recipe fits, its hours, what to change",
}

_NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)
"""What a file's name alone is to blame for."""
_SHOWN = 100  # characters of a file's name in a message
_LAST_WORDS = 5.0
"""Seconds that a process has for ending with its own status, before one that lost it ends: the launcher, or torchrun,
stops all others once one has ended, and takes the first one's status for the run's."""
DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 failed, 2 the input was wrong, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    said: set[str] = set()
    warnings.showwarning = lambda message, category, *_, **__: _warn(message, category, said)
    try:
        status = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return status
    except SystemExit as end:  # argparse, after it has printed a command's help
        return end.code if isinstance(end.code, int) else DONE
    except UserError as error:
        return _say(error, WRONG_INPUT)
    except OthersEnded as error:
        if ranks.is_first():
            _say(error, FAILED)
        with suppress(KeyboardInterrupt):
            time.sleep(_LAST_WORDS)
        return OTHERS if was_launched() else FAILED
    except MemoryShort as error:
        return AGAIN if was_launched() else _say(error, FAILED)
    except RunError as error:
        return _say(error, FAILED)
    except (Interrupted, KeyboardInterrupt) as error:
        if not ranks.is_first():  # of several processes, all of which were interrupted
            return INTERRUPTED
        return _say(str(error) or "interrupted", INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        return FAILED
    except OSError as error:
        _drop_output()
        status = WRONG_INPUT if error.errno in _NO_NAME else FAILED
        return _say(f"{error.strerror or error}{f': {_cut(str(error.filename))}' if error.filename else ''}", status)


def _drop_output() -> None:
    """Have what is still in the buffer of a reader that has gone not fail again when Python closes stdout."""
    with suppress(OSError):  # a stream in place of the process's own has no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _cut(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"


def _warn(message: Warning | str, category: type[Warning], said: set[str]) -> None:
    """Print a warning that is meant for users as one plain line, once; a library's own are for its developers."""
    if issubclass(category, UserWarning) and str(message) not in said:
        said.add(str(message))
        print(f"envrl: warning: {message}", file=sys.stderr)


def _run(arguments: list[str]) -> int:
    if not arguments:
        raise UserError("no command given; 'envrl --help' lists them")
    for argument in arguments:
        try:
            unusable = b"\0" in os.fsencode(argument)
        except UnicodeEncodeError:
            unusable = True
        if unusable:
            raise UserError(f"{_cut(ascii(argument))} is no text that a file's name could have")
    command, *rest = arguments
    if command in ("-h", "--help"):
        print(_help())
        return DONE
    if command == "--version":
        print(f"envrl {__version__}")
        return DONE
    if command not in COMMANDS:
        options = command.startswith("-")
        hint = suggest(command, ("--help", "--version") if options else COMMANDS)
        raise UserError(f"unknown {'option' if options else 'command'} '{command}'{hint}")
    return import_module(f"envrl.cli.{command.replace('-', '_')}").run(rest)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: envrl COMMAND …",
            "",
            "Text agents that learn by reinforcement, and learn how their world works while they do.",
            "",
            *lines,
            "",
            "'envrl COMMAND --help' says more. Exit status: 0 done, 1 failed, 2 the input was wrong, 130 interrupted.",
        ]
    )


def _say(what: object, status: int) -> int:
    print(f"envrl: {' '.join(str(what).split())}", file=sys.stderr)
    return status
