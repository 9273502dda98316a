"""The sampler protocol, through which the episode loop draws responses, whichever engine runs the model.

A request holds the whole prompt, so only the sampler knows about its KV cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from envrl.errors import UserError
from envrl.registry import Entry, blame
from envrl.types import Completion, Ids

if TYPE_CHECKING:  # the protocol is known without torch
    from torch import Tensor

    from envrl.models.load import LanguageModel
    from envrl.rendering.prompts import Message
    from envrl.rollout.trie import Node


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How tokens are sampled.

    At `temperature` (0: the most likely token), from the `top_k` most likely tokens (0: all), and of these from the
    fewest that hold `top_p` of their mass. An unrestricted response ends with one of `stops` or after `max_tokens`.
    """

    temperature: float = 1.0
    max_tokens: int = 24
    stops: frozenset[int] = frozenset()
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one response.

    `episode` identifies the sequence until `release`; its next prompt usually begins with this prompt and its response.
    A restricted response is a path through `restriction`; None allows any text. Samples depend on (`key`, `turn`, place
    in the response) alone. A chat whose template an endpoint applies has `messages` and no prompt.
    """

    episode: int
    prompt: Ids
    restriction: Node | None
    key: int
    turn: int
    settings: SamplingSettings
    messages: tuple[Message, ...] = ()


class TakesWeights(Protocol):
    """Takes the weights of a policy version."""

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """From now on sample with these weights, named as in `LanguageModel.named_parameters`."""
        ...


class Sampler(TakesWeights, Protocol):
    """Samples responses, many at once."""

    def submit(self, request: Request) -> None:
        """Ask for a response; each episode has at most one pending."""
        ...

    def poll(self, enough: int | None = None) -> dict[int, Completion | None]:
        """Wait for at least `enough` responses (None: all that are pending); return the finished ones by episode.

        A response is None if its prompt is longer than the model's context.
        """
        ...

    def release(self, episode: int) -> None:
        """Forget an episode and its pending response."""
        ...


class GuardedSampler:
    """Wraps a user's sampler of a model, so that its exceptions become a `UserError`."""

    def __init__(self, entry: Entry, made: Sampler, model: LanguageModel) -> None:
        self._entry, self._made, self._model = entry, made, model
        if lacks := [name for name in ("submit", "poll", "release", "load") if not hasattr(made, name)]:
            raise UserError(f"the {entry.called} has no {lacks[0]}(): it gives a {type(made).__name__}")

    def submit(self, request: Request) -> None:
        with blame(self._entry):
            self._made.submit(request)

    def poll(self, enough: int | None = None) -> dict[int, Completion | None]:
        with blame(self._entry):
            return self._made.poll(enough)

    def release(self, episode: int) -> None:
        with blame(self._entry):
            self._made.release(episode)

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        from envrl.models.copies import copy_weights

        copy_weights(weights, self._model)  # unless it is the trained model itself, which has them
        with blame(self._entry):
            self._made.load(self._model.named_parameters(), version)
