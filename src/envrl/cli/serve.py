"""`envrl serve ENV`: a world as an OpenEnv server."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from envrl.cli.arguments import Parser, add_plugin, split_overrides, whole_number, world_settings
from envrl.config.plugins import load_plugins
from envrl.errors import UserError


def run(arguments: Sequence[str]) -> int:
    """Serve a world until Ctrl-C."""
    parser = Parser(
        "serve",
        "Serve a world to OpenEnv's clients until Ctrl-C.",
        usage="ENV [--env.ENV.key value ...] [--split S] [--data DIR] [--host H] [--port P] [--sessions N]",
        epilog="--env.ENV.key value is a setting of the world itself, as in a recipe (docs/recipes.md)",
    )
    parser.add_argument("env", metavar="ENV", help="the world, such as household or alfworld")
    parser.add_argument(
        "--split", default="train", help="the split that a reset draws from unless told (default: train)"
    )
    parser.add_argument("--data", metavar="DIR", help="the world's downloaded data")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at (default: 127.0.0.1)")
    parser.add_argument("--port", type=whole_number, default=8000, metavar="P", help="0: any free one (default: 8000)")
    parser.add_argument(
        "--sessions", type=whole_number, default=64, metavar="N", help="clients at a time (default: 64)"
    )
    add_plugin(parser)
    overrides, rest = split_overrides(arguments)
    values = parser.parse(rest)
    load_plugins(values.plugin)
    settings = world_settings(overrides, [values.env])[values.env] | ({"data": values.data} if values.data else {})

    from envrl.openenv import app

    made = app(values.env, split=values.split, sessions=values.sessions, **settings)
    with _listening(values.host, values.port) as listener:
        import uvicorn  # pyright: ignore[reportMissingImports]

        host, port = listener.getsockname()[:2]
        print(f"the world '{values.env}' is served at http://{host}:{port} (Ctrl-C ends it)", flush=True)
        uvicorn.Server(uvicorn.Config(made, log_level="warning")).run(sockets=[listener])
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; raises `UserError` where the address cannot be had."""
    try:
        if port > 65_535:
            raise OSError("ports end at 65535")
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"nothing can listen at {host}:{port} ({reason}): choose others by --host and --port"
        ) from error
