"""What `envrl train … --ray ADDRESS` asks of a Ray cluster: that it is large enough."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Needs:
    """What a process of a run takes of a cluster: its own device, and what its worlds and samplers there take."""

    device: str
    cpus: int = 0
    """CPUs beside its own."""
    gpus: int = 0
    """GPUs beside its own."""
    by: tuple[str, ...] = ()
    """The settings that ask for them, in words."""

    @property
    def each(self) -> dict[str, int]:
        """What a process takes in all, by kind. Without others it has its CPU to itself beside a GPU."""
        gpu = kind_of(self.device) == "GPU"
        cpus = 1 + self.cpus if self.cpus or not gpu else 0
        return {kind: count for kind, count in (("CPU", cpus), ("GPU", gpu + self.gpus)) if count}


def needs_of(config: Config) -> Needs:
    """Return what a process of a recipe takes of a cluster."""
    cpus, gpus, by = 0, 0, []
    if config.env.place == "ray":
        cpus += config.env.workers
        by.append(f"env.workers = {config.env.workers}")
    if config.rollout.sampler == "ray":
        own = config.settings("sampler")
        cpus += own["actors"] * own["cpus"]
        gpus += own["actors"] if kind_of(config.train.device) == "GPU" else 0
        by.append(f"rollout.ray.actors = {own['actors']}")
    return Needs(config.train.device, cpus, gpus, tuple(by))


def room(resources: Mapping[str, float], needs: Needs) -> int:
    """Return how many processes a cluster has room for, at least 1."""
    return max(1, min(int(resources.get(kind, 0)) // count for kind, count in needs.each.items()))


def nodes_alive(ray: Any) -> int:
    """Return how many nodes the cluster has."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def size_of(resources: Mapping[str, float], nodes: int) -> str:
    """Return a cluster's size in words: "2 nodes with 4 CPUs and 0 GPUs"."""
    counts = [some(int(resources.get(kind, 0)), kind) for kind in ("CPU", "GPU")]
    return f"{some(nodes, 'node')} with {' and '.join(counts)}"


def check_size(resources: Mapping[str, float], nodes: int, count: int, needs: Needs) -> None:
    """Raise `UserError` where a cluster is too small for so many processes."""
    for kind, each in needs.each.items():
        if resources.get(kind, 0) < count * each:
            with_others = f" with {' and '.join(needs.by)} on the cluster" if needs.by else ""
            asked = f"a {kind} each" if each == 1 else f"{count * each} {kind}s"
            lower = ", ".join(["--processes", *(words.partition(" ")[0] for words in needs.by)])
            raise UserError(
                f"{some(count, 'process', 'processes')} with train.device = '{needs.device}'{with_others} need "
                f"{asked}, and the Ray cluster has {size_of(resources, nodes)}: add nodes, or lower {lower}"
            )


def some(count: int, what: str, many: str = "") -> str:
    """Return a number of things in words."""
    return f"{count} {what if count == 1 else many or f'{what}s'}"
