"""A sampler that answers as a function of the prompt's text says, for tests of the loop around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from envrl.rollout.sampler import Request
from envrl.types import Completion


class Scripted:
    """Answers everything that was asked at once; `asked` are the numbers of requests a turn."""

    def __init__(self, answer: Callable[[str], Completion | None]) -> None:
        self._answer, self._under_way = answer, dict[int, Request]()
        self.asked: list[int] = []
        self.released: set[int] = set()

    def submit(self, request: Request) -> None:
        assert request.episode not in self._under_way
        self._under_way[request.episode] = request

    def poll(self, enough: int | None = None) -> dict[int, Completion | None]:
        self.asked.append(len(self._under_way))
        requests, self._under_way = self._under_way, {}
        return {number: self._answer(request.messages[-1].content) for number, request in requests.items()}

    def release(self, episode: int) -> None:
        self.released.add(episode)
        self._under_way.pop(episode, None)

    def load(self, weights: Iterable[Any], version: int) -> None:
        pass
