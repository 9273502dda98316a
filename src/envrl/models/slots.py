"""A KV cache of many live sequences of different lengths, by slot, with the states of short convolutions.

It replaces a `transformers` cache object, so the model's own code runs unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from envrl.models.devices import distinct_writes
from envrl.models.runtime import give_back_memory

_BLOCK = 128


class SlotCache:
    """Keys and values (slots, heads, positions, size) of each layer, grown in blocks; every slot has its own length.

    A chunk of tokens is fed right-padded: padding is written beyond the slot's length, masked, and overwritten by the
    next tokens.
    """

    is_compileable = False

    def __init__(self, config: PretrainedConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config.get_text_config()
        self.dtype, self.device = dtype, device
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._states: dict[int, Tensor] = {}
        self.capacity = 0
        self.arrangement = 0
        """Changes whenever a tensor is replaced; a CUDA graph recorded with the old tensors is then void."""
        self._slots: Tensor | None = None
        self._positions = torch.zeros(0)
        self._counts = torch.zeros(0)
        self._visible = 0

    def begin(
        self, counts: Tensor, width: int, slots: Tensor | None = None, visible: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Begin a chunk of `counts` tokens per slot, padded to `width`, for all slots or some of them.

        Return position ids (slots, width), none beyond the slot's last token, and the additive attention mask
        (slots, 1, width, positions). `visible` is that number of positions; the default, the longest of these slots
        plus `width`, must wait for a GPU. A constant makes a pass of fixed shapes.
        """
        lengths = self.lengths if slots is None else self.lengths[slots]
        self._slots, self._counts = slots, counts
        self._positions = lengths[:, None] + torch.arange(width, device=self.device)
        self._visible = int(lengths.max()) + width if visible is None else visible
        self.reserve(self._visible)
        hidden = torch.arange(self._visible, device=self.device)[None, None, :] > self._positions[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, -torch.inf)
        last = (lengths + counts - 1).clamp(min=0)
        return torch.minimum(self._positions, last[:, None]), mask[:, None]

    def windowed(self, mask: Tensor, window: int) -> Tensor:
        """Return the chunk's mask with positions `window` or more back hidden too."""
        far = torch.arange(self._visible, device=self.device)[None, None, :] <= self._positions[:, :, None] - window
        return mask.masked_fill(far[:, None], -torch.inf)

    @property
    def ends(self) -> Tensor:
        """The number of positions that the chunk's last token sees in each of its slots (slots,)."""
        return (self.lengths if self._slots is None else self.lengths[self._slots]) + self._counts

    def commit(self) -> None:
        """End a chunk after it went through every layer: add its tokens to the slots' lengths."""
        if self._slots is None:
            self.lengths += self._counts
        else:
            self.lengths[self._slots] += self._counts

    def reserve(self, capacity: int) -> None:
        """Grow the cache to at least `capacity` positions per slot."""
        if capacity <= self.capacity:
            return
        self.capacity = -(-max(capacity, 3 * self.capacity // 2) // _BLOCK) * _BLOCK
        self.arrangement += 1
        for store in (self._keys, self._values):
            for layer, old in store.items():
                new = old.new_zeros(*old.shape[:2], self.capacity, old.shape[3])
                new[:, :, : old.shape[2]] = old
                store[layer] = new
                if self.device.type == "cpu":
                    give_back_memory()  # a larger tensor does not fit in the memory of smaller ones

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store a chunk's keys and values (slots, heads, width, size); return those of all visible positions."""
        if layer_idx not in self._keys:
            shape = (len(self.lengths), keys.shape[1], self.capacity, keys.shape[3])
            self.arrangement += 1
            self._keys[layer_idx] = keys.new_zeros(shape)
            self._values[layer_idx] = values.new_zeros(shape)
        slots = torch.arange(len(self.lengths), device=self.device) if self._slots is None else self._slots
        result = []
        for store, new in ((self._keys, keys), (self._values, values)):
            with distinct_writes(self.device):
                store[layer_idx][slots[:, None], :, self._positions] = new.transpose(1, 2)
            seen = store[layer_idx][:, :, : self._visible]
            result.append(seen if self._slots is None else seen[self._slots])
        return result[0], result[1]

    def has_previous_state(self, layer_idx: int) -> bool:
        """Return False, consistent with `get_conv_state`; transformers 5.17 calls this."""
        return False

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Return None, so that every chunk takes the path through `update_conv_state`, which knows slots' lengths."""

    def update_conv_state(self, inputs: Tensor, layer_idx: int, *, conv_kernel_size: int, **_: Any) -> Tensor:
        """Return each slot's last inputs joined with the chunk's (slots, width, tokens); keep the new last ones."""
        before = conv_kernel_size - 1
        if layer_idx not in self._states:
            self._states[layer_idx] = inputs.new_zeros(len(self.lengths), inputs.shape[1], before)
            self.arrangement += 1
        states = self._states[layer_idx]
        joined = torch.cat([states if self._slots is None else states[self._slots], inputs], dim=-1)
        last = self._counts[:, None, None] + torch.arange(before, device=self.device)
        ends = joined.gather(2, last.expand(-1, inputs.shape[1], -1))
        if self._slots is None:
            states.copy_(ends)
        else:
            states[self._slots] = ends
        return joined

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.lengths.max())

    @property
    def has_states(self) -> bool:
        """True if there are convolution states, which exist only for the end of a sequence."""
        return bool(self._states)

    @property
    def slot_bytes(self) -> int:
        """The most bytes of keys and values that a layer holds for a slot."""
        pairs = zip(self._keys.values(), self._values.values(), strict=True)
        return max((keys[0].nbytes + values[0].nbytes for keys, values in pairs), default=0)

    def moment(self) -> list[Tensor]:
        """Return a copy of lengths and states, to undo chunks. (Keys and values beyond the lengths do not matter.)"""
        return [kept.clone() for kept in (self.lengths, *self._states.values())]

    def go_back(self, moment: list[Tensor]) -> None:
        """Restore a copy from `moment`, to undo the chunks since; the slots must be the same."""
        for kept, earlier in zip((self.lengths, *self._states.values()), moment, strict=True):
            kept.copy_(earlier)

    def select(self, slots: Tensor) -> None:
        """Keep these slots, in this order; a slot may occur twice."""
        self.arrangement += 1
        empty = len(slots) <= len(self.lengths) and not bool(self.lengths[slots].any())  # then nothing needs copying
        self.lengths = self.lengths[slots]
        for store in (self._keys, self._values, self._states):
            for layer, old in store.items():
                store[layer] = old[: len(slots)] if empty else old[slots]
        if empty:
            self._forget_states(torch.arange(len(slots), device=self.device))

    def clear(self, slots: Tensor) -> None:
        """Empty these slots."""
        self.lengths[slots] = 0
        self._forget_states(slots)

    def cut(self, slot: int, count: int) -> None:
        """Keep the first `count` tokens of a slot (not with states, which exist only for the end of a sequence)."""
        self.lengths[slot] = count

    def _forget_states(self, slots: Tensor) -> None:
        for states in self._states.values():
            states[slots] = 0.0

    def copy(self, sources: Tensor, targets: Tensor, count: int | None = None) -> None:
        """Copy each source to its target, or the first `count` tokens of it (not with states)."""
        lengths = self.lengths[sources] if count is None else self.lengths.new_full(sources.shape, count)
        self.lengths[targets] = lengths
        longest = int(lengths.max())
        for store in (self._keys, self._values):
            for kept in store.values():
                kept[targets, :, :longest] = kept[sources, :, :longest]
        for states in self._states.values():
            states[targets] = states[sources]
