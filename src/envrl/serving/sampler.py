"""The samplers `server`, `vllm` and `ray` as recipes know them: settings, and what is checked before a run begins.

`apart` says that a sampler needs more than the model's weights: an evaluation by itself plays without it.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from envrl.errors import UserError
from envrl.ranges import AboveZero, Positive, Rate
from envrl.registry import register
from envrl.rollout.sampler import Sampler
from envrl.serving.cluster import cluster_for

if TYPE_CHECKING:  # a recipe's settings are read from this signature, without torch
    from envrl.models.load import LanguageModel


def check(*, address: str, folder: str, **_: object) -> None:
    """Raise `UserError` where the server cannot be asked, or no folder is named to hand weights over in."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"rollout.server.address is an address such as http://localhost:8000, not '{address}'")
    if not folder:
        raise UserError(
            "rollout.server.folder names the folder in which the server finds new weights, and is empty: name one that "
            "both can read"
        )
    if importlib.util.find_spec("httpx") is None:
        raise UserError("rollout.sampler = 'server' needs the package 'httpx': pip install 'envrl[server]'")
    from envrl.serving.server_sampler import served

    served(address)


@register("sampler", "server", restricts=False, adapters=False, apart=True, check=check)
def server(
    model: LanguageModel,
    precision: str,
    *,
    address: str = "http://localhost:8000",  # of the server
    kind: Literal["vllm", "sglang"] = "vllm",  # what it is
    folder: str = "",  # new weights are written here, and the server reads them: it must see the same path
    concurrency: Positive = 64,  # requests at a time
    timeout: AboveZero = 600.0,  # seconds for an answer
) -> Sampler:
    """Return the sampler of an inference server that gives tokens and their log-probs (docs/serving.md)."""
    from envrl.serving.server_sampler import ServerSampler

    return ServerSampler(model, precision, address, kind, folder, concurrency, timeout)


def check_vllm(**_: object) -> None:
    """Raise `UserError` where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError("rollout.sampler = 'vllm' needs the package 'vllm' and a GPU: pip install 'envrl[vllm]'")


@register("sampler", "vllm", restricts=False, adapters=False, apart=True, check=check_vllm)
def vllm(
    model: LanguageModel,
    precision: str,
    *,
    memory: Rate = 0.4,  # share of the device's memory for its weights and its keys and values
    eager: bool = False,  # without CUDA graphs: it begins sooner and plays slower
) -> Sampler:
    """Return the sampler that plays with vLLM's engine in this process (docs/serving.md)."""
    from envrl.serving.vllm_sampler import VllmSampler

    return VllmSampler(model, precision, memory, eager)


def check_ray(*, device: str, actors: int, cpus: int, **_: object) -> None:
    """Raise `UserError` where Ray is not installed, no cluster answers, or it has no room for the samplers."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("rollout.sampler = 'ray' needs Ray, which is not installed: pip install 'envrl[ray]'")
    cluster_for(device, actors, cpus)


@register("sampler", "ray", apart=True, check=check_ray)
def ray(
    model: LanguageModel,
    precision: str,
    *,
    actors: Positive = 1,  # samplers that play for each process, on a device of their own of the train.device's kind
    cpus: Positive = 1,  # CPUs of each, and its threads
    patience: AboveZero = 600.0,  # seconds for an actor to find room
) -> Sampler:
    """Return the built-in sampler in actors over the nodes of a Ray cluster (docs/scale.md)."""
    from envrl.serving.ray_sampler import RaySampler

    return RaySampler(model, precision, actors, cpus, patience)
