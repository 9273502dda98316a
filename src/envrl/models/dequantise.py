"""Convert a GGUF file's quantised weights to a model folder of fp32 weights, which any program can load."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from envrl.errors import RunError, UserError
from envrl.models.catalogue import NamedModel
from envrl.models.tokenizer import forget_how_loaded


def check_gguf() -> None:
    """Raise `UserError` with the install command if the package that reads GGUF files is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("reading a GGUF file needs the package 'gguf': pip install 'envrl[gguf]'")


def dequantise(source: Path, target: Path, model: NamedModel) -> None:
    """Write the weights of a GGUF file and its tokenizer into an empty folder, in the format of `from_pretrained`.

    Settings of the original model that a GGUF file lacks come from `model`. Raises `RunError` if the weights do not
    have the known hash.
    """
    check_gguf()
    folder, name = source.parent, source.name
    with redirect_stderr(io.StringIO()):  # no setting hides this progress bar of transformers
        network: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    digest = hash_of_tensors(dict(network.named_parameters()))
    if model.weights and digest != model.weights:
        raise RunError(
            f"{name} gives other weights (SHA-256 {digest}) than are known ({model.weights}): a defect of this version "
            "of gguf or transformers; nothing of it is kept"
        )
    _as_plain(network, model)
    _complete(tokenizer, model)
    network.save_pretrained(target)
    tokenizer.save_pretrained(target)


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of names, shapes and fp32 values, sorted by name; it does not depend on the file format."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().to(torch.float32).contiguous()
        whole.update(f"{name} {tuple(values.shape)}\n".encode())
        whole.update(values.numpy().tobytes())
    return whole.hexdigest()


def _as_plain(network: Any, model: NamedModel) -> None:
    """Remove the network's quantisation settings, which `save_pretrained` refuses, and complete its other settings."""
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.hf_quantizer = None
    network.config.name_or_path = model.hub
    for name, value in model.config.items():
        setattr(network.config, name, value)


def _complete(tokenizer: Any, model: NamedModel) -> None:
    """Set a tokenizer's settings that no GGUF file has: splitting numbers into digits, and the longest text."""
    if model.splits_digits:
        core = tokenizer.backend_tokenizer
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), core.pre_tokenizer]
        )
    if model.context:
        tokenizer.model_max_length = model.context
    forget_how_loaded(tokenizer)
