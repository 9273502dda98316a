"""`envrl view RUN…`: the page of one or several runs, served to this machine's browser."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from envrl.cli.arguments import Parser
from envrl.errors import UserError

PORT = 8765


def run(arguments: Sequence[str]) -> int:
    """Serve the page until Ctrl-C."""
    parser = Parser("view", "Read runs in the browser: curves, where episodes fail, episodes turn by turn.")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="runs, also ones that are still going")
    parser.add_argument("--port", type=int, default=PORT, help=f"the port (default {PORT}; 0: any that is free)")
    options = parser.parse(arguments)
    if not 0 <= options.port < 65536:
        raise UserError(f"--port {options.port} is no port: a number from 0 to 65535 is one")

    from envrl.report.server import ViewServer

    with ViewServer(options.runs, options.port) as server, suppress(KeyboardInterrupt):
        print(f"{server.url} shows the page, to this machine alone; Ctrl-C ends it", flush=True)
        server.serve_forever()
    return 0
