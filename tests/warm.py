"""Processes that begin with torch, transformers and the program imported, which takes five seconds of each otherwise.

One process imports them and is forked for every command, and for every process that `--processes` starts.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import no_sync  # noqa: F401

HERE = Path(__file__).parent
IMPORTED = (
    "envrl.trainer.loop",
    "envrl.engine.sharded",
    "sharded_worker",
    "torch.distributed.launcher.api",
    "transformers.models.lfm2.modeling_lfm2",
    "transformers.models.qwen2.modeling_qwen2",
)
MOST = 300
"""Seconds after which a process is ended."""
SPARE = 6
"""Processes that stand ready for a launcher: it starts two, and two again whenever the memory of one runs out."""


def envrl(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `envrl ARGUMENTS`; with `--processes`, torch's launcher starts the processes, which are forked, too."""
    return _done([{}], ["-m", "envrl", *map(str, arguments)])


def together(count: int, script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder, or at a path, in so many processes with the variables that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    ranks = [{**address, "RANK": str(number), "LOCAL_RANK": str(number)} for number in range(count)]
    return _done(ranks, [str(HERE / script), *map(str, arguments)])


def _done(environments: list[Mapping[str, str]], argv: list[str]) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("out", "err")]
        whole = [{**os.environ, "OMP_NUM_THREADS": "1", **each} for each in environments]
        asked = [os.getcwd(), argv, whole, *map(str, said)]
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(asked) + "\n")
        ends = json.loads(server.stdout.readline())
        return subprocess.CompletedProcess(argv, next(filter(None, ends), 0), *(path.read_text() for path in said))


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    atexit.register(server.communicate)
    return server


# --- in the process that is forked -----------------------------------------------------------------------------------


def _serve() -> None:
    for name in IMPORTED:
        import_module(name)
    gc.freeze()
    for line in sys.stdin:
        folder, argv, environments, out, err = json.loads(line)
        begun = []
        for environment in environments:
            child = os.fork()
            if child == 0:
                os.chdir(folder)
                _become(argv, environment, out, err)
            begun.append(child)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in begun]), flush=True)


def _become(argv: list[str], environment: dict[str, str], out: str = "", err: str = "") -> NoReturn:
    """Be the process that `python ARGV` starts; its output goes on, or to files of these names."""
    signal.alarm(MOST)
    os.environ.clear()
    os.environ |= environment
    for name, stream in ((os.devnull, 0), (out, 1), (err, 2)):
        if name:
            file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(file, stream)
            os.close(file)
    if "--processes" in argv:
        _fork_for_the_launcher()
    if argv[:2] == ["-m", "envrl"]:
        raise SystemExit(import_module("envrl.cli.main").main(argv[2:]))
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
    raise SystemExit(0)


class Forked:
    """A child as torch's launcher knows it: what it uses of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("envrl", timeout)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode


def _fork_for_the_launcher() -> None:
    """Have torch's launcher take children that are forked now, before it has threads."""
    handler: Any = import_module("torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler")
    ready = []
    for _ in range(SPARE):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(write)
            for _, other in ready:
                os.close(other)
            with open(read) as told:
                line = told.readline()
            if not line:  # there was no need
                os._exit(0)
            os.setsid()
            argv, environment = json.loads(line)
            _become(argv, environment)
        os.close(read)
        ready.append((child, write))

    def start(_: object, args: tuple[str, ...], env: dict[str, str]) -> Forked:
        child, write = ready.pop(0)
        with open(write, "w") as told:
            told.write(json.dumps([[argument for argument in args[1:] if argument != "-u"], env]) + "\n")
        return Forked(child)

    handler.SubprocessHandler._popen = start


if __name__ == "__main__":
    _serve()
