"""A client of OpenAI-compatible endpoints: several concurrent questions, and one sentence for every failure."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from envrl.errors import RunError, UserError
from envrl.models.texts import encodable
from envrl.rendering.prompts import Message

GRACE = 10.0
"""Seconds to wait for the questions already sent after another one has failed for good."""
_THOUGHTS = ("reasoning_content", "reasoning")
"""The fields in which endpoints return a thought that they removed from the answer."""


class Question(NamedTuple):
    """A chat to continue, and the seed (31 bits) of its sampling."""

    messages: tuple[Message, ...]
    seed: int


class Reply(NamedTuple):
    """A model's response, its token counts (None if the endpoint gave none), and the number of retries.

    `cut`: the length limit cut it off.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retries: int = 0
    cut: bool = False


Keep = Callable[[Question, Reply | None], None]
"""Gets every reply when it arrives; None if the chat is longer than the model's context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model behind a chat-completions API, with its settings; `key_variable` names the variable that has the key."""

    model: str
    base_url: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.4
    max_tokens: int = 512
    concurrency: int = 8
    timeout: float = 120.0  # seconds without a byte
    retries: int = 5
    template_arguments: Mapping[str, Any] = field(default_factory=dict)  # of the chat template, as vLLM and others take


def check_endpoint(endpoint: Endpoint) -> None:
    """Raise `UserError` for an invalid address, key or number, and if the package `openai` is missing."""
    if "@" in endpoint.base_url or "?" in endpoint.base_url:
        raise UserError(f"base_url must not hold a key; put the key into the variable {endpoint.key_variable}")
    try:
        parts = urlsplit(endpoint.base_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    plain = endpoint.base_url.isprintable() and " " not in endpoint.base_url
    if parts.scheme not in ("http", "https") or not host or not plain or parts.fragment:
        raise UserError(f"base_url must be an address such as http://localhost:8000/v1, not '{endpoint.base_url}'")
    if not endpoint.model.strip():
        raise UserError("the model needs a name: the one that the endpoint knows it by")
    for name in ("concurrency", "max_tokens"):
        if getattr(endpoint, name) < 1:
            raise UserError(f"{name} must be at least 1, not {getattr(endpoint, name)}")
    if not 0 < endpoint.timeout < float("inf"):
        raise UserError(f"timeout must be a number of seconds above 0, not {endpoint.timeout}")
    if endpoint.retries < 0:
        raise UserError(f"retries must be at least 0, not {endpoint.retries}")
    key = _key(endpoint)
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the variable {endpoint.key_variable} holds no key: a key has no such characters")
    if importlib.util.find_spec("openai") is None:
        raise UserError("an endpoint needs the package 'openai': pip install 'envrl[endpoint]'")


@contextmanager
def connected(endpoint: Endpoint, keep: Keep = lambda *_: None) -> Iterator[Client]:
    """Yield a client of the endpoint, which sends `concurrency` questions at a time; raises as `check_endpoint` does.

    `keep` gets every reply when it arrives, even if other questions fail.

    Rate limits, server errors, timeouts and broken connections are retried, with growing delays or as Retry-After says.
    The client raises `UserError` for a wrong key or model, `RunError` if the endpoint is down or its answers are
    invalid.
    """
    check_endpoint(endpoint)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise UserError("an event loop is running here, as in a notebook; evaluate in another thread, or by envrl eval")
    openai = importlib.import_module("openai")
    try:
        client = openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=_key(endpoint) or "none",  # local endpoints need none, but the package does
            max_retries=endpoint.retries,
            timeout=endpoint.timeout,
        )
    except Exception as error:  # a bad address or proxy; the type depends on the HTTP package below
        raise UserError(f"nothing can be asked of {endpoint.base_url}: {_cut(str(error))}") from error
    with asyncio.Runner() as runner:
        try:
            yield Client(openai, client, endpoint, runner, keep)
        finally:
            runner.run(client.close())


class Client:
    """The pending questions at an endpoint, each with a number that the caller gives it."""

    def __init__(self, openai: Any, client: Any, endpoint: Endpoint, runner: asyncio.Runner, keep: Keep) -> None:
        self._openai, self._client, self._endpoint, self._runner, self._keep = openai, client, endpoint, runner, keep
        self._turnstile = asyncio.Semaphore(endpoint.concurrency)
        self._asked: dict[int, asyncio.Task[Reply | None]] = {}
        self._sent: set[int] = set()
        self._failure: Exception | None = None

    def ask(self, number: int, question: Question) -> None:
        """Ask a question; it is sent once fewer than `concurrency` are being answered."""
        self._asked[number] = self._runner.get_loop().create_task(self._put(number, question))

    def replies(self, enough: int) -> dict[int, Reply | None]:
        """Wait for at least `enough` replies; return the replies by number.

        Once a question has failed, no other one is sent: replies to sent questions are still returned, and the next
        call raises.
        """
        return self._runner.run(self._wait(min(enough, len(self._asked))))

    def forget(self, number: int) -> None:
        """Cancel a question."""
        if task := self._asked.pop(number, None):
            task.cancel()

    async def _put(self, number: int, question: Question) -> Reply | None:
        async with self._turnstile:
            if self._failure is not None:
                raise asyncio.CancelledError
            self._sent.add(number)
            try:
                reply = await _ask(self._openai, self._client, self._endpoint, question)
            except Exception as error:
                self._failure = self._failure or error
                raise
            finally:
                self._sent.discard(number)
            self._keep(question, reply)
            return reply

    async def _wait(self, enough: int) -> dict[int, Reply | None]:
        replies: dict[int, Reply | None] = {}
        while len(replies) < enough and self._failure is None:
            await asyncio.wait(self._asked.values(), return_when=asyncio.FIRST_COMPLETED)
            replies |= self._collect()
        if self._failure is not None:
            replies |= await self._finish()
            if not replies:
                raise self._failure
        return replies

    def _collect(self) -> dict[int, Reply | None]:
        """Return the replies so far."""
        replies: dict[int, Reply | None] = {}
        for number, task in [(number, task) for number, task in self._asked.items() if task.done()]:
            del self._asked[number]
            if task.cancelled():
                continue
            if task.exception() is None:
                replies[number] = task.result()
        return replies

    async def _finish(self) -> dict[int, Reply | None]:
        """Send no other question; wait for the replies to those that were sent, which may be paid for."""
        for number, task in self._asked.items():
            if number not in self._sent:
                task.cancel()
        if self._asked:
            await asyncio.wait(self._asked.values(), timeout=GRACE)
        replies = self._collect()
        for task in self._asked.values():
            task.cancel()
        return replies


async def _ask(openai: Any, client: Any, endpoint: Endpoint, question: Question) -> Reply | None:
    """Return the reply, or None if the chat does not fit the model's context."""
    arguments = endpoint.template_arguments
    try:
        raw = await client.chat.completions.with_raw_response.create(
            model=endpoint.model,
            messages=[{"role": role, "content": encodable(content)} for role, content in question.messages],
            temperature=endpoint.temperature,
            max_tokens=endpoint.max_tokens,
            seed=question.seed,
            extra_body={"chat_template_kwargs": dict(arguments)} if arguments else None,
        )
    except openai.APIError as error:
        if isinstance(error, openai.BadRequestError) and _too_long(error):
            return None
        raise _failure(openai, error, endpoint) from error
    return _read(raw.http_response.content, raw.retries_taken, endpoint)


def _read(content: bytes, retries: int, endpoint: Endpoint) -> Reply:
    """Parse a completion; a missing text is the model's fault, any other shape the endpoint's: it raises `RunError`.

    A thought that the endpoint removed from the answer is put back in its marks, unclosed if there is no answer.
    """
    where = f"the endpoint {endpoint.base_url}"
    try:
        completion = json.loads(content)
    except (ValueError, RecursionError):
        raise RunError(f"{where} answers what is not JSON: {_cut(content)}; is the address right?") from None
    match completion:
        case {"choices": [{"message": {"content": str() | None as text, **message}}, *_]}:
            pass
        case {"choices": [{"message": {"role": "assistant", **message}}, *_]} if "content" not in message:
            text = None
        case _:
            raise RunError(f"{where} answers JSON that is no chat completion: {_cut(content)}; is the address right?")
    usage = completion.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, written = [count if isinstance(count, int) and count >= 0 else None for count in counts]
    thought = next((t for name in _THOUGHTS if isinstance(t := message.get(name), str) and t), "")
    if thought:
        text = f"<think>{thought}</think>{text}" if text else f"<think>{thought}"
    cut = completion["choices"][0].get("finish_reason") == "length"
    return Reply(text or "", prompt, written, retries, cut)


def _too_long(error: Any) -> bool:
    return error.code == "context_length_exceeded" or "context length" in str(error).lower()


def _failure(openai: Any, error: Any, endpoint: Endpoint) -> Exception:
    """Return the exception to raise in place of the package's."""
    where, variable = f"the endpoint {endpoint.base_url}", endpoint.key_variable
    tried = f"tried {endpoint.retries + 1} times" if endpoint.retries else "tried once"
    if isinstance(error, openai.APITimeoutError):
        return RunError(
            f"{where} did not answer within {endpoint.timeout:g} s, {tried}; raise --timeout or lower --concurrency"
        )
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ or error
        why = _cut(str(cause)) or type(cause).__name__
        return RunError(f"{where} cannot be reached, {tried} ({why}); is it running?")
    message, status = _words(error, endpoint), getattr(error, "status_code", 0)
    if status in (401, 403):
        state = f"refuses the key in {variable}" if _key(endpoint) else f"wants a key, and {variable} is not set"
        return UserError(f"{where} {state} (status {status}): {message}")
    if status == 404:
        return UserError(
            f"{where} does not know the model '{endpoint.model}', or is at another address (status 404): {message}"
        )
    if status == 429:
        return RunError(
            f"{where} limits the rate (status 429, {tried}): {message}; lower --concurrency or raise --retries"
        )
    if status >= 500:
        return RunError(f"{where} failed (status {status}, {tried}): {message}")
    return UserError(f"{where} refuses the request (status {status}): {message}")


def _words(error: Any, endpoint: Endpoint) -> str:
    """Return the endpoint's own error message, without the key."""
    body = error.body
    message = body.get("message") if isinstance(body, dict) else body
    text = message if isinstance(message, str) and message.strip() else str(error)
    return _cut(text.replace(_key(endpoint), "…") if _key(endpoint) else text)


def _cut(text: str | bytes) -> str:
    """Return the beginning of a text as one line."""
    plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    line = " ".join(plain.split())
    return line if len(line) <= 160 else f"{line[:160]}…"


def _key(endpoint: Endpoint) -> str:
    return os.environ.get(endpoint.key_variable, "").strip()
