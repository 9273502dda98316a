"""The shape of a decoder: what its config.json says, and how many parameters that makes; no weights are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envrl.config.schema import ModelConfig
from envrl.errors import UserError
from envrl.models.published import PUBLISHED

_QUERY_NORMS = ("qwen3", "lfm2", "gemma3_text")
"""Types with an RMSNorm of a head's width on queries and on keys."""
_TIED = ("gemma2", "gemma3_text", "gpt2", "lfm2", "smollm3")
"""Types whose head is the embedding where config.json does not say."""
_CAPPED = ("gemma2",)
"""Types whose attention scores are capped."""
_FOUR_NORMS = ("gemma2", "gemma3_text")
"""Types with a norm behind both parts of a layer, too."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of `layers` layers, all with a gated feed-forward part, `convolutions` of them without attention.

    `vector_count` is the number of biases and norm weights, all that is no matrix.
    """

    kind: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    context: int
    tied: bool
    query_norms: bool
    convolutions: int
    vector_count: int

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_size

    @property
    def key_width(self) -> int:
        return self.key_heads * self.head_size

    @property
    def padded(self) -> bool:
        """Whether rows must be padded for training, since layers mix tokens otherwise than `envrl.models.rows` can."""
        return self.kind in _CAPPED

    @property
    def attention_layers(self) -> int:
        return self.layers - self.convolutions

    @property
    def matrix_count(self) -> int:
        """The parameters of all matrices between embedding and head: what a token is multiplied with."""
        attention = 2 * self.width * (self.attention_width + self.key_width)
        convolution = 4 * self.width * self.width
        feed_forward = 3 * self.width * self.inner
        return self.attention_layers * attention + self.convolutions * convolution + self.layers * feed_forward

    @property
    def embedding_count(self) -> int:
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All weights: embedding, head where it is not the embedding, matrices, biases and norms."""
        return self.embedding_count * (1 if self.tied else 2) + self.matrix_count + self.vector_count


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Return the shape that a model's configuration (config.json) describes; raises `UserError` where it does not.

    Counted right for the types llama, mistral, qwen2, qwen3, smollm3, granite, phi3, gemma2, gemma3_text, lfm2; any
    other one is taken for a Llama of its size.
    """
    config = config.get("text_config") or config
    kind = str(config.get("model_type", ""))
    try:
        width, layers = (
            int(_first(config, "hidden_size", "n_embd")),
            int(_first(config, "num_hidden_layers", "n_layer")),
        )
        heads, vocabulary = int(_first(config, "num_attention_heads", "n_head")), int(config["vocab_size"])
        inner = _inner(config, kind) if "intermediate_size" in config else 8 * width // 3
        key_heads = int(config.get("num_key_value_heads") or heads)
        head_size = int(config.get("head_dim") or width // heads)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"the model's config.json does not say what shape it has ({error})") from error
    kinds = config.get("layer_types") or ()
    convolutions = sum(name == "conv" for name in kinds)
    query_norms = kind in _QUERY_NORMS
    vectors = _vectors(config, kind, width, heads * head_size, key_heads * head_size, head_size, inner)
    convolution = 2 * width + width * int(config.get("conv_L_cache") or 0) if convolutions else 0
    return Shape(
        kind=kind,
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        inner=inner,
        context=int(config.get("max_position_embeddings") or config.get("n_positions") or 1 << 30),
        tied=bool(config.get("tie_word_embeddings", kind in _TIED)),
        query_norms=query_norms,
        convolutions=convolutions,
        vector_count=(layers - convolutions) * vectors + convolutions * convolution + width,
    )


def _first(config: Mapping[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None) or config[names[0]]


def _inner(config: Mapping[str, Any], kind: str) -> int:
    inner = int(config["intermediate_size"])
    if kind == "lfm2" and config.get("block_auto_adjust_ff_dim", True):
        inner = int(float(config.get("block_ffn_dim_multiplier") or 1.0) * int(2 * inner / 3))
        unit = int(config.get("block_multiple_of") or 256)
        inner = -(-inner // unit) * unit
    return inner


def _vectors(
    config: Mapping[str, Any], kind: str, width: int, attention: int, key: int, head_size: int, inner: int
) -> int:
    """Return a layer's biases and norm weights."""
    count = (4 if kind in _FOUR_NORMS else 2) * width
    if kind in _QUERY_NORMS:
        count += 2 * head_size
    if kind == "qwen2":
        count += attention + 2 * key
    elif config.get("attention_bias"):
        count += attention + 2 * key + width
    if config.get("mlp_bias"):
        count += 2 * inner + width
    return count


def read_shape(folder: Path) -> Shape:
    """Return the shape of the model in a folder; raises `UserError` where its config.json is missing or unreadable."""
    path = folder / "config.json"
    try:
        return shape_of(json.loads(path.read_bytes()))
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"'{path}' is not a model's configuration: {error}") from error


def preset_shape(model: ModelConfig) -> Shape:
    """Return the shape of `model.preset` with its largest vocabulary (see docs/models.md)."""
    return shape_of(
        {
            "model_type": "lfm2",
            "vocab_size": model.vocabulary,
            "hidden_size": model.hidden_size,
            "intermediate_size": 2 * model.hidden_size,
            "block_auto_adjust_ff_dim": False,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.key_heads,
            "layer_types": ["conv"] + ["full_attention"] * (model.layers - 1),
            "conv_L_cache": 3,
            "max_position_embeddings": model.context,
        }
    )


def published_shape(name: str) -> Shape | None:
    """Return the shape of a published model whose name a folder's name holds (`Qwen2.5-1.5B-Instruct`), if known."""
    found = [config for known, config in PUBLISHED.items() if known in Path(name).name.lower()]
    return shape_of(found[0]) if found else None
