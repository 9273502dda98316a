"""The sampler `server`: an inference server (vLLM, SGLang) plays, token by token what the trainer learns from.

Weights are handed over through a folder that both can read. The first answer with new weights is compared with the
trainer's own log-probs, so that a server with another model, or with other log-probs, is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
from torch import Tensor

from envrl import ranks
from envrl.errors import RunError, UserError
from envrl.models.copies import copy_weights, sampling_copy
from envrl.models.load import LanguageModel, save_model
from envrl.randomness import key_of
from envrl.rollout.sampler import Request
from envrl.serving.exact import Answer, check_whole, checked, compare
from envrl.serving.protocols import PROTOCOLS, Call, Missing
from envrl.types import Completion

TRIES, PAUSE = 4, 0.5
"""Attempts at a call that the server does not take, and seconds before the second one; they double."""


class ServerSampler:
    """Asks a server for responses; see `Sampler`.

    Raises `UserError` where the server cannot give tokens and their log-probs, or holds another model, `RunError` where
    it does not answer.
    """

    def __init__(
        self,
        model: LanguageModel,
        precision: str,
        address: str,
        kind: str,
        folder: str,
        concurrency: int,
        timeout: float,
    ) -> None:
        check_whole(model, "server")
        self._model, self._precision = model, precision
        self._protocol, self._folder = PROTOCOLS[kind], Path(folder).resolve()
        self._address, self._name = _root(address), served(address)
        limits = httpx.Limits(max_connections=concurrency)
        self._client = httpx.Client(base_url=self._address, timeout=timeout, limits=limits)
        self._threads = ThreadPoolExecutor(concurrency, "ask")
        self._asked: dict[int, tuple[Request, Future[Answer | None]]] = {}
        self._compared = False
        self.version = 0

    def submit(self, request: Request) -> None:
        self._asked[request.episode] = request, self._threads.submit(self._answer, request)

    def poll(self, enough: int | None = None) -> dict[int, Completion | None]:
        """Wait for so many answers; an answer that fails raises, and what else was asked is forgotten."""
        enough = len(self._asked) if enough is None else min(enough, len(self._asked))
        done: dict[int, Completion | None] = {}
        while len(done) < enough:
            wait([future for _, future in self._asked.values()], return_when=FIRST_COMPLETED)
            for episode in [number for number, (_, future) in self._asked.items() if future.done()]:
                request, future = self._asked.pop(episode)
                done[episode] = self._completion(request, self._result(future))
        return done

    def _result(self, future: Future[Answer | None]) -> Answer | None:
        try:
            return future.result()
        except Exception:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._client.close()  # what is under way is given up, so that the process can end
            raise

    def release(self, episode: int) -> None:
        if (asked := self._asked.pop(episode, None)) is not None:
            asked[1].cancel()

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write the weights, and have the server read them; of several processes the first does."""
        copy_weights(weights, self._model)
        self.version, self._compared = version, False
        if ranks.is_first():
            save_model(sampling_copy(self._model, self._precision), self._folder)
            for call in self._protocol.reload(str(self._folder)):
                self._post(call)
        ranks.wait()

    def _answer(self, request: Request) -> Answer | None:
        """Return the server's answer, or None where the prompt does not fit its context."""
        try:
            found = self._post(self._protocol.ask(request, key_of(request.key, request.turn) % 2**31, self._name))
        except TooLong:
            return None
        try:
            answer = self._protocol.read(found)
        except (Missing, TypeError, ValueError, LookupError, AttributeError) as error:
            what = str(error) if isinstance(error, Missing) else "what its answers are read for"
            raise UserError(f"{self._where} gives no {what}: start it with '{self._protocol.start}'") from error
        return checked(request, answer, self._where)

    def _completion(self, request: Request, answer: Answer | None) -> Completion | None:
        if answer is None:
            return None
        if not self._compared:
            compare(self._model, request, answer, self._where, f"start it with '{self._protocol.start}'")
            self._compared = True
        return answer.completion

    @property
    def _where(self) -> str:
        return f"the server {self._address}"

    def _post(self, call: Call) -> Any:
        """Return what the server answers; a call that it cannot take at the moment is made again a few times."""
        (path, body), why = call, ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                response = self._client.post(path, json=body)
            except httpx.HTTPError as error:
                why = f"cannot be reached ({str(error) or type(error).__name__}); is it running?"
                continue
            if response.status_code == 400 and "context length" in response.text.lower():
                raise TooLong
            if response.status_code == 404:
                raise UserError(
                    f"{self._where} knows no {path} or no model '{self._name}': start it with '{self._protocol.start}'"
                )
            if response.status_code == 429 or response.status_code >= 500:
                why = f"failed (status {response.status_code}): {response.text[:160]}"
                continue
            if response.status_code >= 400:
                raise UserError(f"{self._where} refuses {path} ({response.status_code}): {response.text[:160]}")
            return _read(response)
        raise RunError(f"{self._where}, tried {TRIES} times, {why}")


def served(address: str) -> str:
    """Return the name of the model that a server has; raise `UserError` where it does not answer."""
    where = f"the server {_root(address)}"
    try:
        answer = httpx.get(f"{_root(address)}/v1/models", timeout=30.0)
        return str(answer.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(f"{where} does not answer ({error or type(error).__name__}): is it running there?") from error
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{where} does not say which model it has (/v1/models): is the address right?") from error


def _root(address: str) -> str:
    return address.rstrip("/").removesuffix("/v1")


class TooLong(Exception):
    """The prompt does not fit the server's context."""


def _read(response: httpx.Response) -> Any:
    """Return a response's JSON, None if it is empty."""
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError:
        return response.text
