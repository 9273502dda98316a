"""A cache of many live sequences of different lengths: keys and values by slot, and the states of short convolutions.

It takes the place of a `transformers` cache object, so the model's own code runs unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

_BLOCK = 128


class SlotCache:
    """Keys and values (slots, positions, heads, width) a layer, grown in blocks; every slot has its own length.

    A chunk of tokens is fed right-padded: what the padding writes lies beyond the slot's length, is masked, and is
    overwritten by the tokens that come next.
    """

    is_compileable = False

    def __init__(
        self, config: PretrainedConfig, slots: int, limit: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.config = config.get_text_config()
        self.limit = limit
        self.dtype, self.device = dtype, device
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._states: dict[int, Tensor] = {}
        self._capacity = 0
        self._positions = torch.zeros(0)
        self._counts = torch.zeros(0)
        self._visible = 0

    def begin(self, counts: Tensor, width: int) -> tuple[Tensor, Any]:
        """Announce a chunk of `counts[slot]` tokens padded to `width`; return position ids and the attention mask."""
        self._counts = counts
        self._positions = self.lengths[:, None] + torch.arange(width, device=self.device)
        self._visible = int(self.lengths.max()) + width
        self._reserve(self._visible)
        mask = torch.arange(self._visible, device=self.device)[None, None, :] <= self._positions[:, :, None]
        return self._positions, mask[:, None]

    def commit(self) -> None:
        """The chunk went through every layer: the slots are longer now."""
        self.lengths = self.lengths + self._counts

    def _reserve(self, capacity: int) -> None:
        if capacity <= self._capacity:
            return
        self._capacity = -(-capacity // _BLOCK) * _BLOCK
        for store in (self._keys, self._values):
            for layer, old in store.items():
                new = old.new_zeros(old.shape[0], self._capacity, *old.shape[2:])
                new[:, : old.shape[1]] = old
                store[layer] = new

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store a chunk's keys and values (slots, heads, width, size); return those of all visible positions."""
        if layer_idx not in self._keys:
            shape = (keys.shape[0], self._capacity, keys.shape[1], keys.shape[3])
            self._keys[layer_idx] = keys.new_zeros(shape)
            self._values[layer_idx] = values.new_zeros(shape)
        slots = torch.arange(keys.shape[0], device=self.device)[:, None]
        result = []
        for store, new in ((self._keys, keys), (self._values, values)):
            store[layer_idx][slots, self._positions] = new.transpose(1, 2)
            result.append(store[layer_idx][:, : self._visible].transpose(1, 2))
        return result[0], result[1]

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Return None, so that every chunk takes the path through `update_conv_state`, which knows the slots' lengths."""

    def update_conv_state(self, inputs: Tensor, layer_idx: int, *, conv_kernel_size: int, **_: Any) -> Tensor:
        """Put each slot's last inputs before the chunk's (slots, width, tokens) and keep the new last ones."""
        before = conv_kernel_size - 1
        if layer_idx not in self._states:
            self._states[layer_idx] = inputs.new_zeros(inputs.shape[0], inputs.shape[1], before)
        joined = torch.cat([self._states[layer_idx], inputs], dim=-1)
        last = self._counts[:, None, None] + torch.arange(before, device=self.device)
        self._states[layer_idx] = joined.gather(2, last.expand(-1, inputs.shape[1], -1))
        return joined

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.lengths.max())

    def select(self, slots: Tensor) -> None:
        """Keep these slots only, in this order; a slot named twice is copied."""
        self.lengths = self.lengths[slots]
        for store in (self._keys, self._values, self._states):
            for layer, old in store.items():
                store[layer] = old[slots]
