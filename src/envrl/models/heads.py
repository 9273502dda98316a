"""Additional heads of the network: linear maps from its hidden states to numbers, such as the value of a state.

They belong to the model: `LanguageModel.parameters` includes them for training, saving, copying and counting.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from envrl.errors import UserError

FILE = "heads.safetensors"


def new_head(width: int, device: torch.device, outputs: int = 1) -> nn.Linear:
    """Return a zero-initialised head, which gives 0 for every state (…, width) but has a gradient."""
    head = nn.Linear(width, outputs, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def values_of(head: nn.Module, states: Tensor) -> Tensor:
    """Return one number per state: (n, width) to (n,)."""
    return head(states.to(next(head.parameters()).dtype)).squeeze(-1)


def save_heads(heads: nn.ModuleDict, folder: Path) -> None:
    """Write the heads beside the network, if there are any."""
    if len(heads):
        save_file({name: tensor.contiguous() for name, tensor in heads.state_dict().items()}, folder / FILE)


def load_heads(folder: Path, device: torch.device) -> nn.ModuleDict:
    """Return the heads that `save_heads` wrote, if any; raise `UserError` for an invalid file."""
    heads = nn.ModuleDict()
    if not (folder / FILE).is_file():
        return heads
    tensors = load_file(folder / FILE)
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise UserError(f"'{folder / FILE}' holds no head '{name}' of a weight and a bias: restore the file")
        head = new_head(weight.shape[1], device, weight.shape[0])
        head.load_state_dict({"weight": weight, "bias": bias})
        heads[name] = head
    return heads
