"""The built-in sampler: each episode has a slot of one KV cache, so the known part of a prompt is not run again."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from envrl.models.copies import copy_weights, sampling_copy
from envrl.models.load import LanguageModel
from envrl.rollout.meter import Meter
from envrl.rollout.sampler import Request, SamplingSettings
from envrl.rollout.slot_sampler import SlotSampler
from envrl.types import Completion


class OwnSampler:
    """Samples from a model, or from a copy of it in another precision; see `Sampler`.

    The KV cache is freed with the last episode. It shrinks only once a fifth of its slots is free: shrinking copies it.
    """

    def __init__(self, model: LanguageModel, precision: str = "fp32", meter: Meter | None = None) -> None:
        self.model = sampling_copy(model, precision)
        self.meter = meter or Meter()
        self.version = 0
        self._slots: SlotSampler | None = None
        self._settings = SamplingSettings()
        self._slot_of: dict[int, int] = {}
        self._asked: list[Request] = []

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy the weights, except those that are the sampled model's own."""
        self.version = version
        copy_weights(weights, self.model)

    def submit(self, request: Request) -> None:
        self._asked.append(request)

    def release(self, episode: int) -> None:
        self._asked = [request for request in self._asked if request.episode != episode]
        slot = self._slot_of.pop(episode, None)
        if not self._slot_of:
            self._slots = None
        elif slot is not None and self._slots is not None and self._slots.is_open(slot):
            self._slots.forget([slot])

    def poll(self, enough: int | None = None) -> dict[int, Completion | None]:
        if self._slots is None and not self._asked:
            return {}
        slots = self._opened()
        self._feed(slots)
        episodes = {slot: episode for episode, slot in self._slot_of.items()}
        closed = slots.run(enough)
        return {episodes[slot]: closed[slot].completion() for slot in sorted(closed) if slot in episodes}

    def _opened(self) -> SlotSampler:
        """Return the slot sampler, after giving each new episode the first free slot."""
        new = [request.episode for request in self._asked if request.episode not in self._slot_of]
        slots = self._slots
        if slots is None:
            settings = self._settings = self._asked[0].settings
            slots = self._slots = SlotSampler(
                self.model,
                len(new),
                settings.temperature,
                settings.max_tokens,
                settings.stops,
                top_k=settings.top_k,
                top_p=settings.top_p,
                meter=self.meter,
            )
        used = set(self._slot_of.values())
        free = [slot for slot in range(len(slots)) if slot not in used]
        if len(new) > len(free):
            free += slots.extend(len(new) - len(free))
        self._slot_of |= zip(new, free[: len(new)], strict=True)
        slots.forget([self._slot_of[episode] for episode in new])
        return slots

    def _feed(self, slots: SlotSampler) -> None:
        """Feed each slot the part of its prompt that its cache does not hold yet."""
        held = {}
        for request in self._asked:
            if request.settings != self._settings:
                raise ValueError("episodes that are sampled together have one set of settings")
            held[request.episode] = slots.rewind(self._slot_of[request.episode], request.prompt)
        self._compact(slots)
        for request in self._asked:
            rest = request.prompt[held[request.episode] :]
            slots.ask(self._slot_of[request.episode], rest, request.restriction, request.key, request.turn)
        self._asked.clear()

    def _compact(self, slots: SlotSampler) -> None:
        """Drop free slots once they are a fifth of all, or at once if the other slots are still empty."""
        used = sorted(self._slot_of.values())
        held = any(slots.length(slot) for slot in used)
        if len(used) <= (0.8 if held else 0.99) * len(slots):
            slots.keep(used)
            place = {slot: number for number, slot in enumerate(used)}
            self._slot_of = {episode: place[slot] for episode, slot in self._slot_of.items()}
