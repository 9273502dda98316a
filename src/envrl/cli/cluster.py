"""What `envrl train … --ray ADDRESS` asks of a Ray cluster: that it is large enough."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from envrl.config.schema import Config
from envrl.errors import UserError
from envrl.registry import find


def check_ray(config: Config) -> None:
    """Raise `UserError` where no run can be given to Ray from here."""
    if "WORLD_SIZE" in os.environ:
        raise UserError("--ray starts the processes itself: leave it out under torchrun")
    if not find("engine", config.train.engine).traits.get("shards"):
        raise UserError(
            f"--ray is for an engine of several processes, and train.engine = '{config.train.engine}' is one of a "
            "single process: set train.engine = 'sharded', or leave out --ray"
        )
    if find_spec("ray") is None:
        raise UserError("--ray needs Ray, which is not installed: pip install 'envrl[ray]'")


def kind_of(device: str) -> str:
    """Return what Ray calls the device of a process: "GPU" or "CPU"."""
    return "GPU" if device.startswith("cuda") else "CPU"


def room(ray: Any, device: str, workers: int = 0) -> int:
    """Return how many processes the whole cluster has room for, each with so many workers on its CPUs, at least 1."""
    there = ray.cluster_resources()
    counts = [int(there.get("CPU", 0)) // (1 + workers), int(there.get(kind_of(device), 0))]
    return max(1, min(counts) if workers else counts[1])


def nodes_alive(ray: Any) -> int:
    """Return how many nodes the cluster has."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def size_of(resources: Mapping[str, float], nodes: int) -> str:
    """Return a cluster's size in words: "2 nodes with 4 CPUs and 0 GPUs"."""
    counts = [some(int(resources.get(kind, 0)), kind) for kind in ("CPU", "GPU")]
    return f"{some(nodes, 'node')} with {' and '.join(counts)}"


def check_size(resources: Mapping[str, float], nodes: int, count: int, device: str, workers: int = 0) -> None:
    """Raise `UserError` where a cluster is too small for so many processes, each with so many workers on it."""
    kind = kind_of(device)
    if resources.get(kind, 0) < count:
        raise UserError(
            f"{some(count, 'process', 'processes')} with train.device = '{device}' need a {kind} each, and the Ray "
            f"cluster has {size_of(resources, nodes)}: add nodes, or lower --processes"
        )
    if workers and resources.get("CPU", 0) < count * (1 + workers):
        raise UserError(
            f"{some(count, 'process', 'processes')} with env.workers = {workers} on the cluster need "
            f"{count * (1 + workers)} CPUs, and it has {size_of(resources, nodes)}: add nodes, or lower env.workers"
        )


def some(count: int, what: str, many: str = "") -> str:
    """Return a number of things in words."""
    return f"{count} {what if count == 1 else many or f'{what}s'}"
