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
from envrl.rollout.randomness import uniforms
from envrl.rollout.trie import Node

_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
_PASS_COST = 128
"""What a pass over the network costs beside its tokens, in tokens."""
_MOST = 0.5
"""Above this share of the slots a pass takes all of them: then no keys and values need to be copied."""


def pass_width(lengths: NDArray[np.int64]) -> int:
    """Return how many columns to run next of chunks of these lengths: least padding, a pass itself having a price."""

    def cost(width: int) -> float:
        rest = lengths[lengths > width] - width
        later = len(rest) * int(rest.max()) * 0.75 + _PASS_COST if len(rest) else 0.0
        return len(lengths) * min(width, int(lengths.max())) + later

    return min((*_WIDTHS, int(lengths.max())), key=cost)


@dataclass(slots=True)
class Draft:
    """A response in the making; `allowed[i]` is None where token i came from the whole vocabulary."""

    node: Node | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    allowed: list[tuple[int, ...] | None] = field(default_factory=list)
    open: bool = True


class Sampler:
    """Samples responses for many sequences at once; a free one ends with one of `stops` (default: the closing mark).

    A sequence is a slot of the cache. Each call feeds what is new to it, then draws tokens until every response is
    closed; tokens that a trie leaves no choice about are taken without running the network.
    """

    def __init__(
        self,
        model: LanguageModel,
        slots: int,
        temperature: float,
        max_tokens: int,
        dtype: torch.dtype,
        stops: frozenset[int] = frozenset(),
    ) -> None:
        self.model = model
        self.temperature = temperature
        self.max_tokens = max_tokens
        self._dtype = dtype
        self._stops = stops or frozenset({model.codec.marks["end"]})
        self.reset(slots)

    def reset(self, slots: int) -> None:
        """Forget every sequence and open that many empty ones."""
        self._cache = SlotCache(self.model.network.config, slots, self.model.context, self._dtype, self.model.device)
        self._pending: list[list[int]] = [[] for _ in range(slots)]

    def length(self, slot: int) -> int:
        """Return how many tokens slot's sequence holds, those not fed yet included."""
        return int(self._cache.lengths[slot]) + len(self._pending[slot])

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all other sequences; the slots are renumbered in this order."""
        self._cache.select(torch.tensor(slots, dtype=torch.long, device=self.model.device))
        self._pending = [self._pending[slot] for slot in slots]

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

    def _feed(self, slots: list[int]) -> Tensor:
        """Run the pending tokens of these slots; return the logits (len(slots), vocabulary) that follow them."""
        if self._cache.get_seq_length() == 0 and len(slots) == len(self._pending):
            return self._feed_shared(slots)
        return self._run(self._cache, self._pending)[slots]

    def _feed_shared(self, slots: list[int]) -> Tensor:
        unique: dict[tuple[int, ...], int] = {}
        source = [unique.setdefault(tuple(self._pending[slot]), len(unique)) for slot in slots]
        cache = SlotCache(self.model.network.config, len(unique), self.model.context, self._dtype, self.model.device)
        logits = self._run(cache, [list(ids) for ids in unique])
        index = torch.tensor(source, dtype=torch.long, device=self.model.device)
        cache.select(index)
        self._cache = cache
        for slot in slots:
            self._pending[slot] = []
        return logits[index]

    def _run(self, cache: SlotCache, chunks: list[list[int]]) -> Tensor:
        """Run every slot's chunk; return the logits (slots, vocabulary) after its last token.

        Chunks are ragged, so they go in passes of a few columns: a later pass holds only the slots that have more.
        """
        states: Tensor | None = None
        began = cache.get_seq_length() > 0
        while any(chunks):
            busy = [slot for slot, chunk in enumerate(chunks) if chunk]
            lengths = np.array([len(chunks[slot]) for slot in busy])
            width = pass_width(lengths) if began else int(lengths.max())
            if len(busy) > _MOST * len(chunks):
                busy = list(range(len(chunks)))
            counts, found = self._pass(cache, [chunks[slot][:width] for slot in busy], busy)
            states = found.new_zeros(len(chunks), found.shape[-1]) if states is None else states
            for row, slot in enumerate(busy):
                del chunks[slot][: counts[row]]
            fed = [row for row, count in enumerate(counts) if count]
            last = torch.tensor([counts[row] - 1 for row in fed], device=found.device)
            states[[busy[row] for row in fed]] = found[fed, last]
        assert states is not None
        return logits_of(self.model.network, states)

    def _pass(self, cache: SlotCache, parts: list[list[int]], slots: list[int]) -> tuple[list[int], Tensor]:
        counts = [len(part) for part in parts]
        ids = np.full((len(parts), max(counts)), self.model.codec.marks["pad"], dtype=np.int64)
        for row, part in enumerate(parts):
            ids[row, : len(part)] = part
        device = self.model.device
        some = None if len(slots) == len(cache.lengths) else torch.tensor(slots, device=device)
        lengths = torch.tensor(counts, device=device)
        return counts, chunk_states(self.model.network, cache, torch.from_numpy(ids).to(device), lengths, some)

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
