"""Copies of a model for sampling: in lower precision, which halves the memory to read, or beside the trained one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from envrl.models.adapters import share_base
from envrl.models.load import LanguageModel


def with_weights(model: LanguageModel, weight_of: Callable[[str, nn.Parameter], Tensor]) -> LanguageModel:
    """Return a copy of a model whose weights are what `weight_of` gives for its own; what is tied stays tied."""
    made: dict[int, Any] = {
        id(own): nn.Parameter(weight_of(name, own), own.requires_grad) for name, own in model.named_parameters()
    }
    network = copy.deepcopy(model.network, made)
    share_base(model.network, network)
    return LanguageModel(network, model.codec, copy.deepcopy(model.heads, made))


def sampling_copy(model: LanguageModel, precision: str, *, apart: bool = False) -> LanguageModel:
    """Return the model itself for "fp32", or a copy with weights in bf16 (`Sampler.load` updates it).

    `apart`: a copy in any case. Buffers keep their dtype, since the frequencies of rotary positions need it.
    """
    wanted = torch.bfloat16 if precision == "bf16" else None
    if not apart and all(parameter.dtype == (wanted or parameter.dtype) for parameter in model.parameters()):
        return model
    sampling = with_weights(model, lambda _, own: own.detach().to(wanted or own.dtype, copy=True))
    sampling.network.eval()
    for parameter in sampling.parameters():
        parameter.requires_grad_(False)
    return sampling


@torch.no_grad()
def copy_weights(weights: Iterable[tuple[str, Tensor]], model: LanguageModel) -> None:
    """Copy weights, by name, into a model; its own are left as they are."""
    mine = dict(model.named_parameters())
    for name, weight in weights:
        if mine[name] is not weight:
            mine[name].copy_(weight)
