"""The batched sampler: token ids in, token ids and log-probs out, one cache that lives across an episode's turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envrl.models.forward import chunk_states, logits_of, restricted_logits
from envrl.models.load import LanguageModel
from envrl.models.slots import SlotCache
from envrl.rollout.passes import plan_passes
from envrl.rollout.randomness import uniforms
from envrl.rollout.trie import Node


@dataclass(slots=True)
class Draft:
    """A response in the making; `allowed[i]` is None where token i came from the whole vocabulary."""

    node: Node | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    allowed: list[tuple[int, ...] | None] = field(default_factory=list)
    open: bool = True


class Sampler:
    """Samples responses for many sequences at once; a free one ends with one of `stops`.

    A sequence is a slot of the cache. Each call feeds what is new to it, then draws tokens until every response is
    closed; tokens that a trie leaves no choice about are taken without running the network.
    """

    def __init__(
        self,
        model: LanguageModel,
        slots: int,
        temperature: float,
        max_tokens: int,
        stops: frozenset[int],
    ) -> None:
        self.model = model
        self.temperature = temperature
        self.max_tokens = max_tokens
        self._stops = stops
        self.reset(slots)

    def reset(self, slots: int) -> None:
        """Forget every sequence and open that many empty ones."""
        self._cache = self._new_cache(slots)
        self._pending: list[list[int]] = [[] for _ in range(slots)]
        self._fed: list[list[int]] = [[] for _ in range(slots)]

    def _new_cache(self, slots: int) -> SlotCache:
        weight = next(self.model.network.parameters())
        return SlotCache(self.model.network.config, slots, weight.dtype, weight.device)

    def length(self, slot: int) -> int:
        """Return how many tokens slot's sequence holds, those not fed yet included."""
        return int(self._cache.lengths[slot]) + len(self._pending[slot])

    def ends_with(self, slot: int, ids: Sequence[int], last: int = 4096) -> bool:
        """Return whether a slot's sequence is as long as `ids` and its `last` tokens are theirs.

        It is the sequence that the network was given, recorded where that happens.
        """
        held = [*self._fed[slot][-last:], *self._pending[slot]]
        return self.length(slot) == len(ids) and held[-last:] == list(ids[-last:])

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all other sequences; the slots are renumbered in this order."""
        self._cache.select(torch.tensor(slots, dtype=torch.long, device=self.model.device))
        self._pending = [self._pending[slot] for slot in slots]
        self._fed = [self._fed[slot] for slot in slots]

    def forget(self, slots: Sequence[int]) -> None:
        """Empty some slots."""
        used = [slot for slot in slots if self.length(slot)]
        if len(used) == len(self._pending):
            self.reset(len(used))
        elif used:
            self._cache.clear(torch.tensor(used, dtype=torch.long, device=self.model.device))
            for slot in used:
                self._pending[slot], self._fed[slot] = [], []

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int] | None],
        tries: Sequence[Node | None],
        keys: NDArray[np.uint64],
        turn: int,
    ) -> list[Draft | None]:
        """Feed each slot its prompt and draw its response; a slot whose prompt is None rests.

        A response ends with a stop, at a leaf of its trie, or after `max_tokens` where it is free. Equal prompts
        in all-empty slots are run once and shared.
        """
        for slot, prompt in enumerate(prompts):
            if prompt is not None:
                self._pending[slot].extend(prompt)
        drafts = [Draft(tries[slot]) if prompt is not None else None for slot, prompt in enumerate(prompts)]
        waiting = [slot for slot, draft in enumerate(drafts) if draft is not None]
        while waiting:
            logits = self._feed(waiting)
            self._draw(drafts, waiting, logits, keys, turn)
            waiting = [slot for slot in waiting if (draft := drafts[slot]) is not None and draft.open]
        return drafts

    def _feed(self, waiting: list[int]) -> Tensor:
        """Run the pending tokens of these slots; return the logits (len(waiting), vocabulary) that follow them."""
        if self._cache.get_seq_length() > 0:
            return self._run(self._cache, self._pending, waiting, self._fed)
        # A slot that rests has nothing pending: all such share one empty row.
        unique: dict[tuple[int, ...], int] = {}
        rows = [unique.setdefault(tuple(ids), len(unique)) for ids in self._pending]
        self._cache = self._new_cache(len(unique))
        fed: list[list[int]] = [[] for _ in unique]
        logits = self._run(self._cache, [list(ids) for ids in unique], [rows[slot] for slot in waiting], fed)
        self._cache.select(torch.tensor(rows, dtype=torch.long, device=self.model.device))
        self._pending = [[] for _ in rows]
        self._fed = [list(fed[row]) for row in rows]
        return logits

    def _run(self, cache: SlotCache, chunks: list[list[int]], wanted: list[int], fed: list[list[int]]) -> Tensor:
        """Feed the chunks of the wanted slots; return the logits (len(wanted), vocabulary) that follow them.

        What is fed goes from `chunks` to `fed`. Where a pass holds all slots, the others feed what they have in place
        of padding.
        """
        lengths = {slot: len(chunks[slot]) for slot in wanted}
        states: Tensor | None = None
        for step in plan_passes(list(lengths.values()), len(chunks), cache.get_seq_length()):
            busy = [slot for slot, length in lengths.items() if length > step.start]
            slots = list(range(len(chunks))) if step.whole else busy
            parts = [chunks[slot][: step.stop - step.start] for slot in slots]
            found = self._pass(cache, parts, slots)
            for slot, part in zip(slots, parts, strict=True):
                fed[slot] += part
                del chunks[slot][: len(part)]
            states = found.new_zeros(len(chunks), found.shape[-1]) if states is None else states
            rows = busy if step.whole else list(range(len(busy)))
            states[busy] = found[rows, [len(parts[row]) - 1 for row in rows]]
        assert states is not None
        return logits_of(self.model.network, states[wanted])

    def _pass(self, cache: SlotCache, parts: list[list[int]], slots: list[int]) -> Tensor:
        """Run one chunk a slot; return its hidden states (slots, longest, width)."""
        counts = [len(part) for part in parts]
        ids = np.full((len(parts), max(counts)), self.model.codec.pad, dtype=np.int64)
        for row, part in enumerate(parts):
            ids[row, : len(part)] = part
        device = self.model.device
        some = None if len(slots) == len(cache.lengths) else torch.tensor(slots, device=device)
        lengths = torch.tensor(counts, device=device)
        return chunk_states(self.model.network, cache, torch.from_numpy(ids).to(device), lengths, some)

    def _draw(
        self, drafts: list[Draft | None], slots: list[int], logits: Tensor, keys: NDArray[np.uint64], turn: int
    ) -> None:
        """Draw one token for each slot from its logits, then take what its trie leaves no choice about."""
        open_drafts = [draft for slot in slots if (draft := drafts[slot]) is not None]
        choices = [None if draft.node is None else tuple(draft.node) for draft in open_drafts]
        if any(choice is not None for choice in choices):
            width = max(len(choice) if choice is not None else logits.shape[1] for choice in choices)
            allowed = np.full((len(slots), width), -1, dtype=np.int64)
            for row, choice in enumerate(choices):
                allowed[row, : len(choice) if choice is not None else width] = (
                    choice if choice is not None else np.arange(logits.shape[1])
                )
            ids = torch.from_numpy(allowed).to(logits.device)
            logits = restricted_logits(logits, ids)
        else:
            allowed = None
        greedy = self.temperature == 0
        logprobs = (logits if greedy else logits / self.temperature).log_softmax(-1)
        index = self._choose(logprobs, slots, open_drafts, keys, turn, greedy)
        chosen = np.take_along_axis(logprobs.cpu().numpy(), index[:, None], 1)[:, 0]
        for row, draft in enumerate(open_drafts):
            before = len(draft.token_ids)
            token = int(index[row]) if allowed is None else int(allowed[row, index[row]])
            self._append(draft, token, float(chosen[row]), choices[row])
            while draft.open and draft.node is not None and len(draft.node) == 1:
                (only,) = draft.node
                self._append(draft, only, 0.0, (only,))
            self._pending[slots[row]].extend(draft.token_ids[before:])

    def _append(self, draft: Draft, token: int, logprob: float, allowed: tuple[int, ...] | None) -> None:
        draft.token_ids.append(token)
        draft.logprobs.append(logprob)
        draft.allowed.append(allowed)
        if draft.node is not None:
            draft.node = draft.node[token]
            draft.open = bool(draft.node)
        else:
            draft.open = token not in self._stops and len(draft.token_ids) < self.max_tokens

    @staticmethod
    def _choose(
        logprobs: Tensor, slots: list[int], drafts: list[Draft], keys: NDArray[np.uint64], turn: int, greedy: bool
    ) -> NDArray[np.int64]:
        """Return the index of one choice a row: the most likely, or by inverse transform of the row's own number."""
        if greedy:
            return logprobs.argmax(-1).cpu().numpy()
        tokens = np.array([len(draft.token_ids) for draft in drafts], dtype=np.int64)
        numbers = uniforms(keys[slots], turn, tokens)
        cumulative = logprobs.double().exp().cumsum(-1).cpu().numpy()
        targets = numbers[:, None] * cumulative[:, -1:]
        return np.minimum((cumulative <= targets).sum(-1), (logprobs > -1e29).sum(-1).cpu().numpy() - 1)
