"""Sample many sequences at once, in slots of a KV cache that lives across turns: ids in; ids and log-probs out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envrl.models.devices import sent
from envrl.models.forward import chunk_states, logits_of, restricted_logits, state_width
from envrl.models.graphs import PassGraph, recorder
from envrl.models.load import LanguageModel
from envrl.models.slots import SlotCache
from envrl.randomness import uniforms
from envrl.rollout.draw import Choices, choose, padded, remaining_choices, renormalised, sampled_tokens, top_choices
from envrl.rollout.meter import Meter
from envrl.rollout.passes import COSTS, plan_passes
from envrl.rollout.trie import Node
from envrl.sequences import common_prefix
from envrl.types import Completion


@dataclass(slots=True)
class Draft:
    """An unfinished response; `allowed[i]` is None if token i was sampled from the whole vocabulary."""

    node: Node | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    allowed: list[Choices] = field(default_factory=list)
    open: bool = True

    def completion(self) -> Completion:
        """Return the draft as a `Completion`."""
        return Completion(tuple(self.token_ids), tuple(self.logprobs), tuple(self.allowed), self.node is None)


@dataclass(slots=True)
class _Slot:
    """A sequence: its tokens that wait to be fed, and the response that is being sampled."""

    pending: list[int] = field(default_factory=list)
    draft: Draft | None = None
    key: int = 0
    turn: int = 0
    fed: list[int] = field(default_factory=list)
    """Its tokens in the cache."""
    opening: tuple[int, ...] = ()
    """Its first prompt."""

    @property
    def open(self) -> bool:
        return self.draft is not None and self.draft.open


class SlotSampler:
    """Samples responses for many sequences at once, each in a slot of the cache.

    An unrestricted response ends with one of `stops` or after `max_tokens`. A token that the
    trie fixes is taken without running the network. Each other token is sampled at `temperature` (0: the most likely
    token), from the `top_k` most likely choices (0: all), and of these from the fewest that hold `top_p` of their mass.
    """

    def __init__(
        self,
        model: LanguageModel,
        slots: int,
        temperature: float,
        max_tokens: int,
        stops: Collection[int],
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        meter: Meter | None = None,
    ) -> None:
        self.model = model
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.max_tokens = max_tokens
        self._meter = meter or Meter()
        self._stops = frozenset(stops)
        weight = next(model.network.parameters())
        self._cache = SlotCache(model.network.config, slots, weight.dtype, weight.device)
        record = recorder(weight.device)
        self._graph = record and PassGraph(model.network, self._cache, record, self._meter.recorded)
        self._slots = [_Slot() for _ in range(slots)]

    def __len__(self) -> int:
        return len(self._slots)

    def length(self, slot: int) -> int:
        """Return the number of tokens of a slot's sequence, including those not fed yet."""
        return len(self._slots[slot].fed) + len(self._slots[slot].pending)

    def is_open(self, slot: int) -> bool:
        """Return whether a slot has an unfinished response."""
        return self._slots[slot].open

    def forget(self, slots: Sequence[int]) -> None:
        """Empty these slots; each can then begin another sequence."""
        if used := [slot for slot in slots if self.length(slot)]:
            self._cache.clear(self._tensor(used))
        for slot in used:
            self._slots[slot] = _Slot()

    def rewind(self, slot: int, ids: Sequence[int]) -> int:
        """Cut a slot's sequence to its common prefix with `ids`; return the length of that prefix.

        At least the last of `ids` is left to be run. A cache with convolution states keeps all of the sequence or none.
        """
        state = self._slots[slot]
        held = (*state.fed, *state.pending)
        if len(state.fed) < len(ids) and held == tuple(ids[: len(held)]):
            return len(held)
        count = 0 if self._cache.has_states else common_prefix(state.fed, ids[:-1])
        if not count:
            self.forget([slot])
            return 0
        self._cache.cut(slot, count)
        self._slots[slot] = _Slot(fed=state.fed[:count])
        return count

    def extend(self, count: int) -> range:
        """Append `count` empty slots; return them."""
        first = len(self)
        new = range(first, first + count)
        self._cache.select(self._tensor([*range(first), *[0] * count]))
        self._cache.clear(self._tensor(new))
        self._slots += [_Slot() for _ in new]
        return new

    def keep(self, slots: Sequence[int]) -> None:
        """Keep only these slots, renumbered in this order."""
        self._cache.select(self._tensor(slots))
        self._slots = [self._slots[slot] for slot in slots]

    def ask(self, slot: int, prompt: Sequence[int], trie: Node | None, key: int, turn: int) -> None:
        """Append a prompt to a slot's sequence; `run` feeds and answers it. (key, turn) seed the random numbers."""
        state = self._slots[slot]
        state.pending.extend(prompt)
        state.draft, state.key, state.turn = Draft(trie), key, turn

    def run(self, enough: int | None = None) -> dict[int, Draft]:
        """Sample tokens until `enough` responses (default: all) are finished; return the finished ones by slot.

        The next call continues the unfinished ones.
        """
        closed: dict[int, Draft] = {}
        while (waiting := [number for number, slot in enumerate(self._slots) if slot.open]) and (
            enough is None or len(closed) < enough
        ):
            states = self._feed(waiting)
            with self._meter.part("draw"):
                self._draw(waiting, states)
            drafts = {number: self._slots[number].draft for number in waiting}
            closed |= {number: draft for number, draft in drafts.items() if draft is not None and not draft.open}
        return closed

    @torch.no_grad()
    def _feed(self, waiting: list[int]) -> Tensor:
        """Run the pending tokens of these slots; return the hidden states (len(waiting), width) of the last tokens."""
        weight = next(self.model.network.parameters())
        states = weight.new_zeros(len(self._slots), state_width(self.model.network))
        fresh = [slot for slot in waiting if not self._slots[slot].fed]
        leaders = self._begin(fresh) if fresh else {}
        if first := list(dict.fromkeys(leaders.values())):
            self._run(first, first, states)
        if twins := {slot: leader for slot, leader in leaders.items() if slot != leader}:
            self._copy(twins)
            states[self._tensor(list(twins))] = states[self._tensor(list(twins.values()))]
        if rest := [slot for slot in waiting if slot not in leaders]:
            self._run(list(range(len(self._slots))), rest, states)
        return states[self._tensor(waiting)]

    def _begin(self, fresh: list[int]) -> dict[int, int]:
        """Map each of these empty slots to the slot that is run for it: equal sequences are run once.

        A slot whose prompt another slot began with is left out: all but its last token, which is still to be run, is
        copied from there at once. (Not so with convolution states, which exist only for the end of a sequence.)
        """
        older = {slot.opening: number for number, slot in enumerate(self._slots) if slot.fed}
        first: dict[tuple[int, ...], int] = {}
        leaders = {}
        for slot in fresh:
            opening = self._slots[slot].opening = tuple(self._slots[slot].pending)
            if opening in older and len(opening) > 1 and not self._cache.has_states:
                self._copy({slot: older[opening]}, len(opening) - 1)
            else:
                leaders[slot] = first.setdefault(opening, slot)
        return leaders

    def _copy(self, sources: dict[int, int], count: int | None = None) -> None:
        """Copy to each of these slots the sequence of its source, or the first `count` tokens of that."""
        self._cache.copy(self._tensor(list(sources.values())), self._tensor(list(sources)), count)
        for number, source in sources.items():
            slot = self._slots[number]
            slot.fed = self._slots[source].fed[:count]
            del slot.pending[: len(slot.fed)]

    def _run(self, group: list[int], wanted: list[int], states: Tensor) -> None:
        """Feed the pending tokens of the wanted slots; write each one's last hidden state into its row of `states`.

        If a pass includes the whole group, the other slots feed pending tokens of their own in place of padding.
        """
        lengths = {slot: len(self._slots[slot].pending) for slot in wanted}
        cached = max(len(self._slots[slot].fed) for slot in group)
        for step in plan_passes(list(lengths.values()), len(group), cached, COSTS[self.model.device.type]):
            busy = [slot for slot, length in lengths.items() if length > step.start]
            slots = group if step.whole else busy
            parts = [self._slots[slot].pending[: step.stop - step.start] for slot in slots]
            hidden = self._pass(parts, slots)
            for slot, part in zip(slots, parts, strict=True):
                self._slots[slot].fed += part
                del self._slots[slot].pending[: len(part)]
            ends = {slot: (row, len(part) - 1) for row, (slot, part) in enumerate(zip(slots, parts, strict=True))}
            rows, columns = (self._tensor(part) for part in zip(*(ends[slot] for slot in busy), strict=True))
            states[self._tensor(busy)] = hidden[rows, columns]

    def _pass(self, parts: list[list[int]], slots: list[int]) -> Tensor:
        """Run one chunk per slot; return the hidden states (slots, longest, width), valid until the next pass."""
        counts = [len(part) for part in parts]
        ids = np.full((len(parts), max(counts)), self.model.codec.pad, dtype=np.int64)
        for row, part in enumerate(parts):
            ids[row, : len(part)] = part
        visible = max(len(self._slots[slot].fed) for slot in slots) + max(counts)

        def ordinary() -> Tensor:
            some = None if len(slots) == len(self._slots) else self._tensor(slots)
            chunk, lengths = sent(ids, self.model.device), self._tensor(counts)
            return chunk_states(self.model.network, self._cache, chunk, lengths, some, visible)

        with self._meter.a_pass(counts):
            if self._graph is None or max(counts) > 1:
                return ordinary()
            room = max(len(slot.fed) for slot in self._slots) + 1
            return self._graph.run(slots, ids[:, 0], counts, room, ordinary)

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return sent(numbers, self.model.device)

    @torch.no_grad()
    def _draw(self, waiting: list[int], states: Tensor) -> None:
        """Sample one token for each slot from its hidden state, then append the tokens that its trie fixes."""
        logits = logits_of(self.model.network, states)
        slots = [self._slots[number] for number in waiting]
        drafts = [slot.draft for slot in slots if slot.draft is not None]
        choices: list[Choices] = [None if draft.node is None else tuple(draft.node) for draft in drafts]
        ids = padded(choices, logits)
        if ids is not None:
            logits = restricted_logits(logits, ids)
        greedy = self.temperature == 0
        logprobs = (logits if greedy else logits.div_(self.temperature)).log_softmax(-1)
        del logits
        if not greedy and (self.top_k or self.top_p < 1):
            stays = top_choices(logprobs, self.top_k, self.top_p)
            logprobs, choices = renormalised(logprobs, stays), remaining_choices(choices, stays, ids)
        index = logprobs.argmax(-1) if greedy else choose(logprobs, self._numbers(slots))
        tokens, drawn = sampled_tokens(index, logprobs, ids)
        for slot, draft, token, logprob, allowed in zip(slots, drafts, tokens, drawn, choices, strict=True):
            before = len(draft.token_ids)
            self._append(draft, token, logprob, allowed)
            while draft.open and draft.node is not None and len(draft.node) == 1:
                (only,) = draft.node
                self._append(draft, only, 0.0, (only,))
            slot.pending.extend(draft.token_ids[before:])

    def _append(self, draft: Draft, token: int, logprob: float, allowed: Choices) -> None:
        draft.token_ids.append(token)
        draft.logprobs.append(logprob)
        draft.allowed.append(allowed)
        if draft.node is not None:
            draft.node = draft.node[token]
            draft.open = bool(draft.node)
        else:
            draft.open = token not in self._stops and len(draft.token_ids) < self.max_tokens

    @staticmethod
    def _numbers(slots: list[_Slot]) -> NDArray[np.float64]:
        """Return the random number of each slot's next token."""
        keys = np.array([slot.key for slot in slots], dtype=np.uint64)
        turns = np.array([slot.turn for slot in slots], dtype=np.uint64)
        places = np.array([len(slot.draft.token_ids) if slot.draft is not None else 0 for slot in slots])
        return uniforms(keys, turns, places)
