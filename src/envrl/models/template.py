"""A tokenizer's chat template: chats to text, text to ids, and the ids that end a response."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError, meta
from jinja2.defaults import DEFAULT_NAMESPACE
from transformers import PreTrainedModel

from envrl.errors import UserError, suggest
from envrl.models.tokenizer import Codec
from envrl.types import Ids

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template that `model.chat_template = "chatml"` gives to a tokenizer without one."""
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_DATE = datetime(2024, 7, 26)
"""The date for templates that show today's, so that prompts do not change from day to day."""
_CLOCK = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_THOUGHT = r"([<\[])(%s(?:\w+:)?think(?:ing)?)([>\]])"
_OPENED = re.compile(_THOUGHT % "" + r"\s*\Z", re.IGNORECASE)
_CLOSED = re.compile(_THOUGHT % "/", re.IGNORECASE)
_OURS = frozenset({"messages", "add_generation_prompt", "tools", "documents", "raise_exception", "strftime_now"})
"""The template arguments that this program or transformers provides."""


class ChatTemplate:
    """The chat template of a codec's tokenizer, with `arguments` of its own such as `enable_thinking`.

    `end` is the id with which the template ends a response; `stops` are all ids that end one. `opened` is the end of a
    prompt if the template opens a thought ("<think>\\n"); `thought` are the marks of a thought, if the template has
    any. Raises `UserError` if there is no template, it cannot be used, or nothing ends a response.
    """

    def __init__(self, codec: Codec, stops: Iterable[int] = (), arguments: Mapping[str, Any] | None = None) -> None:
        self.codec, self._arguments = codec, dict(arguments or {})
        tokenizer = codec.tokenizer
        if not tokenizer.chat_template:
            raise UserError(
                "the model's tokenizer has no chat template, which every rollout.format but 'marks' needs: set "
                "model.chat_template = 'chatml', which gives it one"
            )
        self._check_arguments()
        self._in_parts = False
        self.end = self._end(self._example())
        self.stops = frozenset({self.end, *stops})
        self._anchor = str(tokenizer.convert_ids_to_tokens(self.end))
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        self.special = frozenset({*special, *map(str, tokenizer.all_special_tokens), self._anchor})
        """The names of the tokens that only the template and the prompt format may write."""
        opened = _OPENED.search(self.render((("user", "question"),)))
        self.opened = opened[0] if opened else ""
        self.thought = self._thought(opened)

    def render(self, messages: Sequence[tuple[str, str]], answer: bool = True) -> str:
        """Return the text of a chat of (role, content); with `answer`, up to the beginning of the model's response."""
        chat: Any = [
            {"role": role, "content": [{"type": "text", "text": content}] if self._in_parts else content}
            for role, content in messages
        ]
        try:
            text = self.codec.tokenizer.apply_chat_template(
                chat,
                tokenize=False,
                add_generation_prompt=answer,
                chat_template=_without_clock(self.codec.tokenizer.get_chat_template()),
                **{"date_string": _DATE.strftime("%d %b %Y"), **self._arguments},
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            message = " ".join(str(error).split())
            raise UserError(f"the model's chat template cannot write a chat: {message}") from error
        return str(text)

    def encode(self, text: str) -> Ids:
        """Return the ids of rendered text, in which special tokens are recognised."""
        return self.codec.encode_special(text)

    def encode_behind(self, text: str) -> Ids:
        """Return the ids of rendered text that continues after a response.

        It is encoded together with the end of the response: some tokenizers put a blank before the beginning of a text,
        and some marks absorb the blanks after them.
        """
        ids = self.encode(self._anchor + text)
        return ids[1:] if ids[:1] == (self.end,) else self.encode(text)

    def tokens_within(self, text: str, start: int, stop: int) -> tuple[int, int]:
        """Return the range of tokens of `encode_behind(text)` that contain the characters `start:stop`."""
        if self.encode(self._anchor + text)[:1] != (self.end,):
            return self.codec.tokens_within(text, start, stop)
        shift = len(self._anchor)
        first, last = self.codec.tokens_within(self._anchor + text, shift + start, shift + stop)
        return max(first - 1, 0), max(last - 1, 0)

    def _check_arguments(self) -> None:
        """Raise `UserError` for an argument that the template does not use, or that the program provides."""
        source = self.codec.tokenizer.get_chat_template()
        provided = {*_OURS, *DEFAULT_NAMESPACE, *self.codec.tokenizer.special_tokens_map}
        known = sorted(_mentioned(source) - provided) if self._arguments else []
        for name in self._arguments:
            if name not in known:
                hint = suggest(name, known) if known else "; it takes none"
                raise UserError(f"model.template_arguments: the model's chat template has no argument '{name}'{hint}")

    def _thought(self, opened: re.Match[str] | None) -> tuple[str, str] | None:
        """Return the template's opening and closing mark of a thought, or None if it has none."""
        if opened:
            return f"{opened[1]}{opened[2]}{opened[3]}", f"{opened[1]}/{opened[2]}{opened[3]}"
        closed = _CLOSED.search(self.codec.tokenizer.get_chat_template())
        return (closed[0].replace("/", "", 1), closed[0]) if closed else None

    def _example(self) -> str:
        """Return an example chat with a response; also determine whether contents are texts or lists of parts."""
        refused = None
        for self._in_parts in (False, True):
            try:
                written = self.render((("user", "question"), ("assistant", "response")), answer=False)
            except UserError as error:
                refused = refused or error
                continue
            if "response" in written.partition("question")[2]:
                return written
        raise refused or UserError(
            "the model's chat template does not write what messages say: give the tokenizer another chat_template, or "
            "set model.chat_template = 'chatml'"
        )

    def _end(self, written: str) -> int:
        """Return the id that ends a response: the template's, else the tokenizer's end of sequence."""
        ids = self.encode(written.rpartition("response")[2].lstrip())
        tokenizer = self.codec.tokenizer
        if ids and ids[0] in tokenizer.added_tokens_decoder:
            return ids[0]
        if not isinstance(tokenizer.eos_token_id, int):
            raise UserError(
                "nothing ends a response of this model: its chat template has no mark, its tokenizer no end"
            )
        return tokenizer.eos_token_id


def stops_of(network: PreTrainedModel, codec: Codec) -> tuple[int, ...]:
    """Return the model's own stop ids: those of its generation configuration and its tokenizer."""
    stops = getattr(network.generation_config, "eos_token_id", None)
    listed = stops if isinstance(stops, list) else [stops]
    return tuple(i for i in (*listed, codec.tokenizer.eos_token_id) if isinstance(i, int))


def cleaner(names: Collection[str]) -> Callable[[str], str]:
    """Return a function that breaks up these names of special tokens in a text with a blank, so that none is left.

    A name of one character becomes U+FFFD; names that remain are removed.
    """
    spelled = sorted(filter(None, names), key=len, reverse=True)  # some tokenizers have an empty one
    if not spelled:
        return lambda text: text
    special = re.compile("|".join(map(re.escape, spelled)))

    def clean(text: str) -> str:
        text = special.sub(_broken, text)
        while special.search(text):  # such as a name of blanks
            text = special.sub("", text)
        return text

    return lru_cache(maxsize=20_000)(clean)


def _broken(found: re.Match[str]) -> str:
    name = found[0]
    return f"{name[0]} {name[1:]}" if len(name) > 1 else "\N{REPLACEMENT CHARACTER}"


def _mentioned(template: str) -> set[str]:
    """Return the variables that a template reads without setting them."""
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)  # a tag of transformers
    try:
        return set(meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)))
    except TemplateError:
        return set(re.findall(r"[a-z_]\w*", plain))  # rendering it will report the error


def _without_clock(template: str) -> str:
    """Return the template with the fixed date in place of today's: it would not use a clock that we pass."""
    return _CLOCK.sub(lambda found: repr(_DATE.strftime(found[2])), template)
