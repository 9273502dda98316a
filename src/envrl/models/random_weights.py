"""Networks of published shapes with random weights, for benchmarks: speed and memory do not depend on the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from envrl.errors import UserError, suggest
from envrl.models.published import PUBLISHED

_SMALL = {
    "model_type": "qwen2",
    "vocab_size": 32_000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
}
SHAPES: Mapping[str, Mapping[str, Any]] = {"qwen2-100m": _SMALL, **PUBLISHED}
"""Shapes by name: the published ones, and a small one of 100 million parameters for a CPU."""


def build_shape(name: str, pad: int, end: int, seed: int, device: torch.device) -> PreTrainedModel:
    """Return a Qwen2 network of a shape in `SHAPES`, initialised with `seed` on its device.

    Raises `UserError` for an unknown name.
    """
    if name not in SHAPES:
        raise UserError(f"unknown shape '{name}'{suggest(name, SHAPES)}")
    config = Qwen2Config(
        **{key: value for key, value in SHAPES[name].items() if key != "model_type"},
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.02,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=end,
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)
