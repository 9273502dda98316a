"""A policy's network and codec as one thing: built, loaded from a folder, saved to one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from envrl.config.schema import ModelConfig
from envrl.errors import UserError, suggest
from envrl.models.forward import admit
from envrl.models.tiny import PRESETS, build_tiny
from envrl.models.tokenizer import MARKS, Codec, train_tokenizer

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal language model and the codec of its tokenizer."""

    network: PreTrainedModel
    codec: Codec

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def context(self) -> int:
        """The longest sequence that the network takes, tokens."""
        return int(getattr(self.network.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)

    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())


def find_device(name: str) -> torch.device:
    """Return the torch device of that name; raises `UserError` where this machine has none such."""
    if name == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count()
    index = int(name.partition(":")[2] or 0)
    if index >= found:
        raise UserError(
            f"train.device = '{name}' is not there: this machine has {found or 'no'} CUDA device{'s' * (found != 1)}; "
            "use --train.device cpu"
        )
    return torch.device("cuda", index)


def build_model(config: ModelConfig, texts: Sequence[str], seed: int, device: str = "cpu") -> LanguageModel:
    """Build `model.preset` from scratch: a tokenizer trained on `texts` and a network drawn with `seed`."""
    if config.preset not in PRESETS:
        raise UserError(f"unknown model.preset '{config.preset}'{suggest(config.preset, PRESETS)}")
    tokenizer = train_tokenizer(texts, config.vocabulary, config.context)
    codec = Codec(tokenizer)
    network = build_tiny(config, len(codec), codec.marks["pad"], codec.marks["end"], seed)
    return _ready(LanguageModel(network, codec), device)


def load_model(folder: str | Path, device: str = "cpu") -> LanguageModel:
    """Load a folder that `transformers` wrote, ours or any causal language model's; raises `UserError` if it cannot.

    A tokenizer that lacks our marks gets them as new special tokens, with new rows in the embedding.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise UserError(
            f"'{folder}' is not a model folder: it has no config.json; name one that transformers' from_pretrained loads"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        network = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"the model in '{folder}' cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    tokenizer.split_special_tokens = True
    missing = [mark for mark in MARKS.values() if mark not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    if len(tokenizer) > network.get_input_embeddings().weight.shape[0]:
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return _ready(LanguageModel(network, Codec(tokenizer)), device)


def save_model(model: LanguageModel, folder: Path) -> None:
    """Write model.safetensors, config.json and the tokenizer's files, as `from_pretrained` reads them."""
    model.network.save_pretrained(folder)
    model.codec.tokenizer.save_pretrained(folder)


def _ready(model: LanguageModel, device: str) -> LanguageModel:
    model.network.to(find_device(device))
    model.network.eval()
    admit(model.network)
    return model
