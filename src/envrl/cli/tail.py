"""`envrl tail RUN`: the progress lines of a run, live."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from envrl.cli.arguments import Parser
from envrl.errors import UserError

LINES = 10
POLL = 1.0
"""Seconds between two looks at the files."""
PATIENCE = 30
"""Looks without a new line, after which it is asked whether a process still works on the run."""


def run(arguments: Sequence[str]) -> int:
    """Print a run's last lines and go on as long as the run does, or until Ctrl-C; pass its figures to trackers."""
    parser = Parser("tail", "Print the last progress lines of a run, and those to come, until it is over.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's directory")
    parser.add_argument("--lines", type=int, default=LINES, metavar="N", help=f"how many at first (default {LINES})")
    parser.add_argument("--once", action="store_true", help="print them and end, whether or not the run goes on")
    parser.add_argument(
        "--to",
        action="append",
        default=[],
        metavar="TRACKER",
        help="also pass every figure to tensorboard (RUN/tensorboard), wandb (offline, RUN/wandb) or trackio",
    )
    options = parser.parse(arguments)
    if options.lines < 0:
        raise UserError(f"--lines {options.lines} is no number of lines: 0 or more is one")

    from envrl.cli.tracking import check_tracker, entry, open_tracker
    from envrl.report.follow import Progress
    from envrl.report.read import load_run

    for name in options.to:
        check_tracker(name)
    data = load_run(options.run, empty=True)
    progress, silent = Progress(options.run, data.updates_planned), PATIENCE
    trackers = [open_tracker(name, options.run, data.config) for name in dict.fromkeys(options.to)]
    told = progress.new()
    lines = progress.lines(told)
    lines = lines[max(0, len(lines) - options.lines) :]
    over = options.once
    with suppress(KeyboardInterrupt):
        while True:
            for line in lines:
                print(line, flush=True)
            for tracker in trackers:
                for name, record in told:
                    tracker.log(*entry(name, record))
            silent = PATIENCE if told else silent + 1
            if over:
                break
            over = silent >= PATIENCE and _is_over(options.run)
            silent %= PATIENCE
            time.sleep(0 if over else POLL)
            told = progress.new()  # also once it is over: lines may have come since the last look
            lines = progress.lines(told)
    for tracker in trackers:
        tracker.close()
        print(f"look at them by: {tracker.place}")
    return 0


def _is_over(run: Path) -> bool:
    """Return whether a run is finished, or nobody works on it, which is said."""
    from envrl.locks import is_held
    from envrl.report.read import load_run

    if load_run(run, empty=True).finished:
        return True
    if is_held(run / "config.toml"):
        return False
    print(f"no process works on {run} now: 'envrl train … --resume' goes on with it")
    return True
