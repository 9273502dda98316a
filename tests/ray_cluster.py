"""What tests on a Ray cluster share; the cluster itself is a fixture of conftest.py."""

from __future__ import annotations

import time
from collections.abc import Callable

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


def wait_for(there: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)
