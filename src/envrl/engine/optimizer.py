"""Optimisers of fp32 master weights, combined into one object whose state is named tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from envrl.models.load import LanguageModel

BETAS = (0.9, 0.99)


class Optimizer:
    """AdamW, or Muon for the matrices of hidden layers and AdamW for the rest."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self._parts = parts
        self._peaks = [group["lr"] for group in self._groups()]
        self._restored: Mapping[str, Tensor] = {}

    def _groups(self) -> Iterator[dict[str, Any]]:
        for part in self._parts:
            yield from part.param_groups

    def scale(self, factor: float) -> None:
        """Set every learning rate to its peak times `factor`."""
        for group, peak in zip(self._groups(), self._peaks, strict=True):
            group["lr"] = peak * factor

    def step(self) -> None:
        """Update the weights with the current gradient."""
        self._take_restored()
        for part in self._parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop the gradient."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Return moments and step counts, named `<part>.<parameter>.<what>`."""
        return dict(self._restored) or {
            f"{number}.{parameter}.{name}": value
            for number, part in enumerate(self._parts)
            for parameter, entry in part.state_dict()["state"].items()
            for name, value in entry.items()
        }

    def forget(self) -> None:
        """Free the moments."""
        self._restored = {}
        for part in self._parts:
            part.state.clear()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned.

        They are moved to the weights' device with the first step: an engine with shards takes them from here before.
        """
        self._restored = tensors

    def _take_restored(self) -> None:
        if not self._restored:
            return
        tensors, self._restored = self._restored, {}
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self._parts]
        for key, value in tensors.items():
            number, parameter, name = key.split(".")
            states[int(number)].setdefault(int(parameter), {})[name] = value
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def _in_one_go(model: LanguageModel) -> dict[str, bool]:
    """Return the implementation of AdamW: on CUDA the fused one, which allocates no arrays as large as the weights."""
    return {"fused": True} if model.device.type == "cuda" else {"foreach": True}


def adamw(model: LanguageModel, learning_rate: float, weight_decay: float = 0.0) -> Optimizer:
    """Return AdamW (β 0.9, 0.99; Loshchilov and Hutter, arXiv 1711.05101), with weight decay for matrices only."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return Optimizer([torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, **_in_one_go(model))])


def muon(
    model: LanguageModel,
    learning_rate: float,
    matrix_learning_rate: float,
    of_matrices: type[torch.optim.Muon] = torch.optim.Muon,
) -> Optimizer:
    """Return Muon (Jordan et al. 2024; scaled as in Liu et al., arXiv 2502.16982) for the matrices of hidden layers.

    The embedding, the heads and everything that is not a matrix use AdamW. `of_matrices`: Muon as it is for matrices
    that lie in shards.
    """
    embedding = {id(p) for p in model.network.get_input_embeddings().parameters()}
    head = model.network.get_output_embeddings()
    embedding |= {id(p) for p in head.parameters()} if head is not None else set()
    heads = {id(p) for p in model.heads.parameters()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim == 2 and id(p) not in embedding | heads]
    rest = [p for p in parameters if p.ndim != 2 or id(p) in embedding | heads]
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        parts += [of_matrices(matrices, lr=matrix_learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")]
    if rest:  # LoRA has only matrices, and torch refuses an optimiser without parameters
        parts += [torch.optim.AdamW(rest, lr=learning_rate, betas=BETAS, weight_decay=0.0, **_in_one_go(model))]
    return Optimizer(parts)
