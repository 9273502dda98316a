"""Configurations of published models by name, from their config.json, which need no download."""

from __future__ import annotations

from typing import Any

_QWEN = {"model_type": "qwen2", "max_position_embeddings": 32768}
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": _QWEN
    | {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
    | {"intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},
    "qwen2.5-1.5b": _QWEN
    | {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2}
    | {"intermediate_size": 8960, "vocab_size": 151936, "tie_word_embeddings": True},
    "qwen2.5-3b": _QWEN
    | {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2}
    | {"intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True},
    "qwen2.5-7b": _QWEN
    | {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
}
