"""Copies of a model for sampling: in lower precision, which halves the memory to read, or beside the trained one."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from envrl.models.load import LanguageModel


def sampling_copy(model: LanguageModel, precision: str, *, apart: bool = False) -> LanguageModel:
    """Return the model itself for "fp32", or a copy with weights in bf16 (`Sampler.load` updates it).

    `apart`: a copy in any case. Buffers keep their dtype, since the frequencies of rotary positions need it.
    """
    wanted = torch.bfloat16 if precision == "bf16" else None
    if not apart and all(parameter.dtype == (wanted or parameter.dtype) for parameter in model.parameters()):
        return model
    sampling = LanguageModel(copy.deepcopy(model.network).eval(), model.codec, copy.deepcopy(model.heads))
    for parameter in sampling.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(wanted or parameter.dtype)
    return sampling


@torch.no_grad()
def copy_weights(weights: Iterable[tuple[str, Tensor]], model: LanguageModel) -> None:
    """Copy weights, by name, into a model; its own are left as they are."""
    mine = dict(model.named_parameters())
    for name, weight in weights:
        if mine[name] is not weight:
            mine[name].copy_(weight)
