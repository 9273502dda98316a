"""Where tokens are drawn: what the episode loop asks of a sampler, whichever engine runs the model.

A request says the whole prompt, so nothing of a sampler's cache is anybody else's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from envrl.errors import UserError
from envrl.registry import Entry, register, told_of
from envrl.types import Completion, Ids

if TYPE_CHECKING:  # a recipe's settings are those of these signatures, and reading one takes no torch
    from torch import Tensor

    from envrl.models.load import LanguageModel
    from envrl.rendering.prompts import Message
    from envrl.rollout.trie import Node


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How tokens are drawn.

    At `temperature` (0: the most likely token), of the `top_k` most likely ones (0: all), and of these of the fewest
    that hold `top_p` of their mass. A free response ends with one of `stops` or after `max_tokens`.
    """

    temperature: float = 1.0
    max_tokens: int = 24
    stops: frozenset[int] = frozenset()
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One response that is asked for.

    `episode` names the sequence: what is asked of it next mostly begins with its prompt and its response, and is known
    to until `release`. A restricted response is one of the ways through `restriction`, None for any text. What is drawn
    depends on (`key`, `turn`, place in the response) alone. A chat that no tokenizer of ours writes has `messages`, and
    no prompt.
    """

    episode: int
    prompt: Ids
    restriction: Node | None
    key: int
    turn: int
    settings: SamplingSettings
    messages: tuple[Message, ...] = ()


class Sampler(Protocol):
    """Draws responses, many at once."""

    def submit(self, request: Request) -> None:
        """Ask for a response; each episode has one under way at most."""
        ...

    def poll(self, enough: int | None = None) -> dict[int, Completion | None]:
        """Wait for at least `enough` responses (None: all that were asked for); return those by episode.

        None stands for a prompt that is longer than the model's context.
        """
        ...

    def release(self, episode: int) -> None:
        """Forget an episode, and what it has under way."""
        ...

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Sample with these weights, by the names of `LanguageModel.named_parameters`, from now on."""
        ...


class GuardedSampler:
    """A sampler of a user's, whose mistakes are said in a sentence."""

    def __init__(self, entry: Entry, made: Sampler) -> None:
        self._entry, self._made = entry, made
        if lacks := [name for name in ("submit", "poll", "release", "load") if not hasattr(made, name)]:
            raise UserError(f"the {entry.called} has no {lacks[0]}(): it gives a {type(made).__name__}")

    def submit(self, request: Request) -> None:
        with told_of(self._entry):
            self._made.submit(request)

    def poll(self, enough: int | None = None) -> dict[int, Completion | None]:
        with told_of(self._entry):
            return self._made.poll(enough)

    def release(self, episode: int) -> None:
        with told_of(self._entry):
            self._made.release(episode)

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        with told_of(self._entry):
            self._made.load(weights, version)


@register("sampler", "own")
def own(model: LanguageModel, precision: str) -> Sampler:
    """Return the sampler that is built in: in this process, with a cache that lives across an episode's turns."""
    from envrl.rollout.own_sampler import OwnSampler

    return OwnSampler(model, precision)
