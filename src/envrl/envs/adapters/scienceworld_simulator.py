"""ScienceWorld's simulator: one Java process for all worlds of this process, each of which has its own game there."""

from __future__ import annotations

import atexit
import os
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

from envrl.envs.adapters.extras import imported, need
from envrl.errors import RunError, UserError

_JAVA_OPTIONS = (
    # The order in which things are named is that of hash sets, which rests on the objects' identity hashes. Drawn at
    # random, as Java does by default, the same commands are answered with other texts in every episode; with one hash
    # for all, the order is that of insertion.
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:+IgnoreUnrecognizedVMOptions",
    "-XX:hashCode=2",
    "-XX:+UseSerialGC",
)
_SECONDS_TO_END = 5


def need_simulator() -> None:
    """Raise `UserError` where the package scienceworld or Java is not installed; nothing is started."""
    need("scienceworld", "scienceworld", "scienceworld")
    _java()


def _java() -> str:
    home = os.environ.get("JAVA_HOME", "")
    named = Path(home, "bin", "java")
    java = str(named) if home and named.is_file() else shutil.which("java")
    if java is None:
        raise UserError(
            "the world 'scienceworld' needs Java, which is not installed: install a Java runtime, "
            "'apt-get install default-jre-headless' on Debian and Ubuntu, OpenJDK elsewhere"
        )
    return java


def new_game() -> Any:
    """Return a game of the simulator: ScienceWorld's `PythonInterface`, nothing loaded yet.

    Raises `RunError` where Java does not start. The Java process ends with this process, however that ends.
    """
    return _gateway(os.getpid()).jvm.scienceworld.runtime.pythonapi.PythonInterface()


@lru_cache(maxsize=1)
def _gateway(process: int) -> Any:
    """Start Java for this process; one that was forked from it gets its own."""
    constants = imported("scienceworld.constants", "scienceworld", "scienceworld")
    java_gateway = imported("py4j.java_gateway", "scienceworld", "scienceworld")
    try:
        port, java = java_gateway.launch_gateway(
            classpath=constants.JAR_PATH,
            javaopts=list(_JAVA_OPTIONS),
            java_path=_java(),
            cwd=constants.BASEPATH,
            die_on_exit=True,  # Java reads the pipe from us, and ends when that is closed
            return_proc=True,
        )
        parameters = java_gateway.GatewayParameters(auto_field=True, port=port)
        gateway = java_gateway.JavaGateway(gateway_parameters=parameters, java_process=java)
    except Exception as error:  # py4j raises a bare Exception where Java cannot be started
        raise RunError(
            f"ScienceWorld's simulator did not start ({error}); see whether 'java -version' works"
        ) from error
    atexit.register(_end, gateway, java)
    return gateway


def _end(gateway: Any, java: Any) -> None:
    gateway.shutdown()
    java.stdin.close()
    try:
        java.wait(_SECONDS_TO_END)
    except Exception:  # it hangs; nothing in it is worth waiting for
        java.kill()
