"""Random networks of published shapes, to measure with: speed and memory do not depend on what the weights are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from envrl.errors import UserError, suggest

SHAPES: Mapping[str, Mapping[str, int | bool]] = {
    "qwen2-100m": {
        "vocab_size": 32_000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": {
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
"""Shapes by name: those of Qwen2.5 from their config.json, and one of 100 million parameters for a CPU."""


def build_shape(name: str, pad: int, end: int, seed: int, device: torch.device) -> PreTrainedModel:
    """Return a Qwen2 network of a shape of `SHAPES`, drawn with `seed` on the device that it is for.

    Raises `UserError` for an unknown name.
    """
    if name not in SHAPES:
        raise UserError(f"unknown shape '{name}'{suggest(name, SHAPES)}")
    config = Qwen2Config(
        **SHAPES[name],  # type: ignore[arg-type]
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.02,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=end,
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)
