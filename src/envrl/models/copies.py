"""A copy of a model's weights in lower precision for sampling, which halves the memory to read for every token."""

from __future__ import annotations

import copy

import torch

from envrl.models.load import LanguageModel


def sampling_copy(model: LanguageModel, precision: str) -> LanguageModel:
    """Return the model itself for "fp32", or a copy with weights in bf16 (`Sampler.load` updates it).

    Buffers keep their dtype, since the frequencies of rotary positions need it.
    """
    if precision == "fp32":
        return model
    sampling = LanguageModel(copy.deepcopy(model.network).eval(), model.codec, copy.deepcopy(model.heads))
    for parameter in sampling.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(torch.bfloat16)
    return sampling
