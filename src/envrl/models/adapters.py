"""LoRA adapters with `peft`: small matrices beside the decoder's linear layers are trained, the base model is not.

A checkpoint holds the adapter in `peft`'s own format, and identifies its base by folder and hash:

    adapter_model.safetensors, adapter_config.json    the matrices, and the layers they belong to
    base.json                                         the base's folder, and a SHA-256 of its weight files
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from envrl.errors import UserError
from envrl.models.bases import Base, hash_of_weights, read_base
from envrl.models.checkpoints import BASE
from envrl.models.find import is_hub_id

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""The prefix that `peft` adds to the names of a network's layers."""


_BASES: WeakKeyDictionary[PreTrainedModel, Base] = WeakKeyDictionary()


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError:
        raise UserError("model.lora_rank needs the package 'peft': pip install 'envrl[lora]'") from None


def check_peft() -> None:
    """Raise `UserError` with the install command if `peft` is missing."""
    _peft()


def has_adapter(model: PreTrainedModel) -> bool:
    """Return whether the network has an adapter; then only the adapter is trained."""
    return model in _BASES


def share_base(model: PreTrainedModel, copied: PreTrainedModel) -> None:
    """Have a copy of a network know the base of the adapter that it was copied with, if there is one."""
    if has_adapter(model):
        _BASES[copied] = _BASES[model]


def add_adapter(
    model: PreTrainedModel, folder: Path, rank: int, alpha: float, seed: int, name: str = "", revision: str = ""
) -> None:
    """Add a new adapter to every linear layer except the output, and freeze the base, which is in `folder`.

    `name` and `revision` are the recipe's `model.path` and `model.revision` of the base.

    A layer computes W x + (alpha / rank) B A x, with A drawn from the seed and B = 0 (LoRA, arXiv 2106.09685, section
    4.1). Raises `UserError` if `peft` is missing, or `folder` holds an adapter itself.
    """
    peft = _peft()
    if has_adapter(model):
        raise UserError(
            f"the model in '{folder}' is an adapter itself; merge it with 'envrl export' and name the result"
        )
    base = Base(str(folder.resolve()), hash_of_weights(folder), name, revision)
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        base_model_name_or_path=name if name and is_hub_id(name) else base.folder,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(peft, settings, model, base)


def _inject(peft: Any, settings: Any, model: PreTrainedModel, base: Base) -> None:
    peft.inject_adapter_in_model(settings, model)
    model.eval()  # the added modules are in training mode
    _BASES[model] = base


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter and the reference to its base; `from_pretrained` loads the folder if `peft` is installed."""
    settings: Any = copy(model.peft_config["default"])
    settings.target_modules = sorted(settings.target_modules)  # a set, whose order differs between processes
    settings.save_pretrained(folder)
    tensors = {_PREFIX + name: tensor.contiguous() for name, tensor in adapter_tensors(model).items()}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    base = _BASES[model]
    base = replace(base, beside=os.path.relpath(base.folder, folder.resolve()))
    (folder / BASE).write_text(json.dumps(asdict(base), indent=1) + "\n", encoding="utf-8")


def load_adapter(model: PreTrainedModel, folder: Path, place: Path) -> None:
    """Add the adapter saved in `folder` to its base model, which is in `place`, and freeze the base."""
    peft = _peft()
    base = replace(read_base(folder), folder=str(place.resolve()))
    settings = peft.LoraConfig.from_pretrained(str(folder))
    if not is_hub_id(base.name):
        settings.base_model_name_or_path = base.folder
    _inject(peft, settings, model, base)
    put_tensors(model, read_adapter(folder))


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Return the matrices of the adapter saved in `folder`."""
    return {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(folder / _WEIGHTS).items()}


def adapter_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the adapter's matrices by layer name."""
    return _peft().get_peft_model_state_dict(model, save_embedding_layers=False)


def trained_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the trained tensors: the adapter's matrices, or all weights if there is no adapter."""
    return adapter_tensors(model) if has_adapter(model) else model.state_dict()


@torch.no_grad()
def put_tensors(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `trained_tensors`; raise `UserError` if an adapter belongs to another model."""
    if not has_adapter(model):
        model.load_state_dict(tensors)
        return
    present = adapter_tensors(model)
    if {name: each.shape for name, each in present.items()} != {name: each.shape for name, each in tensors.items()}:
        raise UserError(f"the adapter does not fit the model in '{_BASES[model].folder}'; it was made for another one")
    for name, each in present.items():
        each.copy_(tensors[name])


@contextmanager
def other_adapter(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Run the block with another adapter's matrices; an untrained adapter has no effect."""
    own = {name: each.clone() for name, each in adapter_tensors(model).items()}
    put_tensors(model, tensors)
    try:
        yield
    finally:
        put_tensors(model, own)


def merge_adapter(model: PreTrainedModel) -> None:
    """Merge the adapter into the base's weights, W + (alpha / rank) B A, which leaves a plain network."""
    adapted = importlib.import_module("peft.tuners.lora").LoraLayer
    layers: list[tuple[str, Any]] = [(name, m) for name, m in model.named_modules() if isinstance(m, adapted)]
    names = {name for name, _ in layers}
    for name, layer in layers:
        if any(name.startswith(f"{other}.") for other in names):
            continue  # experts have nested wrappers; the outer one merges both
        if hasattr(layer, "unload_and_optionally_merge_module"):
            plain = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        else:
            layer.merge()
            plain = layer.get_base_layer()
        model.set_submodule(name, plain)
    del model.peft_config
    del _BASES[model]
