"""Room for samplers on a Ray cluster, asked without torch."""

from __future__ import annotations

from typing import Any

from envrl import ranks
from envrl.clusters import joined
from envrl.errors import UserError


def cluster_for(device: str, actors: int, cpus: int) -> Any:
    """Return the module `ray`, connected to a cluster.

    Raises `UserError` where none answers, or it could not hold the samplers of all processes even if it were idle.
    """
    ray = joined("rollout.sampler = 'ray'")
    each = {"CPU": cpus, **({"GPU": 1} if device.startswith("cuda") else {})}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = sum(min(int(node.get(kind, 0)) // count for kind, count in each.items()) for node in nodes)
    if there < (wanted := actors * ranks.expected()):
        takes = " and ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in each.items())
        raise UserError(
            f"rollout.sampler = 'ray': the processes have {wanted} sampler{'s' * (wanted > 1)}, each with {takes} of a "
            f"node, and the Ray cluster has room for {there}: add nodes, or lower rollout.ray.actors"
            f"{' or rollout.ray.cpus' * (cpus > 1)}"
        )
    return ray
