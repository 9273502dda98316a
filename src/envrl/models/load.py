"""A policy's network and codec as one object: build it, load it from a folder, save it to one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from envrl.config.schema import Config, ModelConfig
from envrl.errors import UserError, suggest
from envrl.models.adapters import add_adapter, has_adapter, load_adapter, save_adapter
from envrl.models.admission import admit_once
from envrl.models.bases import base_folder
from envrl.models.find import check_folder, model_folder
from envrl.models.forward import longest_sequence, vocabulary_size
from envrl.models.heads import load_heads, save_heads
from envrl.models.out_of_memory import is_out_of_memory
from envrl.models.random_weights import build_shape
from envrl.models.template import CHATML, CHATML_TOKENS, stops_of
from envrl.models.tiny import PRESETS, build_tiny
from envrl.models.tokenizer import MARKS, Codec, forget_how_loaded, train_tokenizer


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A causal language model, the codec of its tokenizer, and its additional heads by name (`envrl.models.heads`)."""

    network: PreTrainedModel
    codec: Codec
    heads: nn.ModuleDict = field(default_factory=nn.ModuleDict)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def context(self) -> int:
        """The longest sequence of the network, in tokens."""
        return longest_sequence(self.network)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the network, then those of the heads."""
        yield from (parameter for _, parameter in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (name, parameter); the names of the heads begin with "heads."."""
        yield from self.network.named_parameters()
        yield from self.heads.named_parameters(prefix="heads")

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


def find_device(name: str) -> torch.device:
    """Return the torch device cpu, cuda or cuda:N; raise `UserError` if this machine does not have it."""
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise UserError(f"train.device must be 'cpu', 'cuda' or 'cuda:N', not '{name}'")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    index = int(match[1] or os.environ.get("LOCAL_RANK", "0"))  # of several processes each has a device of its own
    if index >= count:
        raise UserError(
            f"train.device = '{name}' is not there: this machine has {count or 'no'} CUDA device{'s' * (count != 1)}; "
            "use --train.device cpu"
        )
    return torch.device("cuda", index)


def build_model(
    config: ModelConfig, texts: Sequence[str], seed: int, device: str = "cpu", shape: str = ""
) -> LanguageModel:
    """Build `model.preset` from scratch: a tokenizer trained on `texts`, and a network initialised with `seed`.

    With `shape`, the network is that of `SHAPES` instead.
    """
    if config.preset not in PRESETS:
        raise UserError(f"unknown model.preset '{config.preset}'{suggest(config.preset, PRESETS)}")
    tokenizer = train_tokenizer(texts, config.vocabulary, config.context, config.phrases)
    if config.chat_template:
        _add_chat_template(tokenizer)
    codec = Codec(tokenizer)
    if shape:
        network = build_shape(shape, codec.marks["pad"], codec.marks["end"], seed, find_device(device))
    else:
        network = build_tiny(config, len(codec), codec.marks["pad"], codec.marks["end"], seed)
    if config.chat_template:
        _end_chats(network, codec)
    return _ready(LanguageModel(network, codec), device)


def load_policy(folder: str | Path, config: Config, device: str = "") -> LanguageModel:
    """Load the model in `folder` for a recipe's prompt format, on the recipe's device or another one."""
    marks, model = not config.rollout.is_chat, config.model
    named = (model.path, model.revision)
    return load_model(
        folder, device or config.train.device, marks=marks, chat_template=model.chat_template, named=named
    )


def load_path(config: Config, device: str = "") -> LanguageModel:
    """Load `model.path`, from the hub if it is an id of it, with a new adapter if the recipe asks for one."""
    asked = config.model
    folder = model_folder(asked.path, asked.revision)
    model = load_policy(folder, config, device)
    if asked.lora_rank:
        named = {"name": asked.path, "revision": asked.revision}
        add_adapter(model.network, folder, asked.lora_rank, asked.lora_alpha, config.seed, **named)
    return model


def load_model(
    folder: str | Path,
    device: str = "cpu",
    *,
    marks: bool = True,
    chat_template: str = "",
    named: tuple[str, str] = ("", ""),
) -> LanguageModel:
    """Load any causal language model in a folder of `transformers`' format; raise `UserError` if that fails.

    With `marks`, a tokenizer without our marks gets them as new special tokens; with `chat_template` ("chatml"), it
    gets that template and its tokens; the embedding gets new rows for them. `named` is the recipe's name and revision
    of the base of an adapter.
    """
    path = Path(folder)
    check_folder(path)
    base = base_folder(path, *named)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        network = _load_network(base or path)
    except Exception as error:  # transformers may raise anything for a user's folder
        if is_out_of_memory(error):
            raise
        raise UserError(f"the model in '{folder}' cannot be loaded: {_first_sentence(error)}") from error
    _check_vocabulary(tokenizer, path)
    forget_how_loaded(tokenizer)
    if marks:
        _add_tokens(tokenizer, MARKS.values())
    if chat_template:
        _add_chat_template(tokenizer)
    if len(tokenizer) > vocabulary_size(network):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # an adapter's base must get the same rows every time it is loaded
            network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if base is not None:
        load_adapter(network, path, base)
    codec = Codec(tokenizer)
    if chat_template:
        _end_chats(network, codec)
    return _ready(LanguageModel(network, codec, load_heads(path, find_device(device))), device)


def _add_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer the built-in chat template `chatml`."""
    _add_tokens(tokenizer, CHATML_TOKENS)
    tokenizer.chat_template = CHATML
    # Tokenizers built here find no special tokens in texts; with a chat template, other programs need them found.
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = False


def _end_chats(network: PreTrainedModel, codec: Codec) -> None:
    """Make `generate` also stop at the end of a response in our chat template, so that other programs do."""
    end = codec.tokenizer.get_vocab()[CHATML_TOKENS[1]]
    if network.generation_config is not None:
        network.generation_config.eos_token_id = sorted({*stops_of(network, codec), end})


def _add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> None:
    missing = [token for token in tokens if token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse a tokenizer without vocabulary: transformers makes an empty one if its files are missing."""
    ids = tokenizer.encode("open 1", add_special_tokens=False)
    if not ids or all(i == tokenizer.unk_token_id for i in ids):
        raise UserError(
            f"the tokenizer in '{folder}' has no vocabulary: its tokenizer.json is missing or empty; copy the model's "
            "tokenizer files there"
        )


def _load_network(path: Path) -> PreTrainedModel:
    """Load a network; refuse missing or misshapen weights, which transformers would initialise at random."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        local_files_only=True,
        trust_remote_code=False,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    network, found = loaded
    for wrong, name in ((found["mismatched_keys"], "another shape than"), (found["missing_keys"], "nothing for")):
        for key in sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in wrong):
            raise ValueError(f"its weights have {name} the {key} of its config.json")
    return network


def _first_sentence(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    message = " ".join(str(error).split())
    if "custom code" in message:
        return "it brings code of its own, which is not run; take a model whose code transformers has"
    if kind := re.search(r"Unrecognized configuration class <class '[\w.]*?(\w+)Config'>", message):
        return f"it is of the kind {kind[1]}, which is no causal language model"
    return re.split(r"\.\s", message, maxsplit=1)[0].rstrip(".")[:300]


def save_model(model: LanguageModel, folder: Path) -> None:
    """Write the weights and config.json (or only the adapter) and the tokenizer, in the format of `from_pretrained`."""
    if has_adapter(model.network):
        save_adapter(model.network, folder)
    else:
        model.network.save_pretrained(folder)
    save_heads(model.heads, folder)
    model.codec.tokenizer.save_pretrained(folder)


def _ready(model: LanguageModel, device: str) -> LanguageModel:
    nn.Module.to(model.network, find_device(device))
    model.network.eval()
    admit_once(model.network, model.codec)
    return model
