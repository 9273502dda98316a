"""The sampler of a chat model behind an endpoint: text in, text out, so it can evaluate but not train."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envrl.eval.client import Client, Question, Reply
from envrl.eval.kept import Kept
from envrl.randomness import key_of
from envrl.registry import register
from envrl.rollout.sampler import Request
from envrl.types import Completion

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Usage:
    """Counts of requests, retries and tokens (None once a reply came without a token count)."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0

    def add(self, reply: Reply | None) -> None:
        self.requests += 1
        if reply is not None:
            self.retries += reply.retries
            self.prompt_tokens = _sum(self.prompt_tokens, reply.prompt_tokens)
            self.completion_tokens = _sum(self.completion_tokens, reply.completion_tokens)


@register("sampler", "endpoint", trains=False)
class EndpointSampler:
    """Asks an endpoint all questions without a kept answer; without a client it has only those. See `Sampler`."""

    def __init__(self, client: Client | None, kept: Kept) -> None:
        self._client, self._kept, self.usage = client, kept, Usage()
        self._known: dict[int, Reply | None] = {}
        self._asked: set[int] = set()

    def submit(self, request: Request) -> None:
        question = Question(request.messages, key_of(request.key, request.turn) % 2**31)
        if self._kept.answered(question):
            self._known[request.episode] = self._kept.answer(question)
        elif self._client is not None:
            self._asked.add(request.episode)
            self._client.ask(request.episode, question)

    def poll(self, enough: int | None = None) -> dict[int, Completion | None]:
        replies, self._known = self._known, {}
        missing = len(self._asked) if enough is None else min(len(self._asked), enough - len(replies))
        if self._client is not None and missing > 0:
            replies |= self._client.replies(missing)
        self._asked -= replies.keys()
        for reply in replies.values():
            self.usage.add(reply)
        return {
            episode: None if reply is None else Completion(text=reply.text, cut=reply.cut)
            for episode, reply in replies.items()
        }

    def release(self, episode: int) -> None:
        self._known.pop(episode, None)
        if self._client is not None and episode in self._asked:
            self._asked.discard(episode)
            self._client.forget(episode)

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        raise NotImplementedError("a model behind an endpoint cannot be given weights")


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other
