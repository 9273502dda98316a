"""A tokenizer's chat template: chats to text, text to ids, and what ends a response."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedModel

from envrl.errors import UserError
from envrl.models.tokenizer import Codec, Ids

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The template that `model.chat_template = "chatml"` gives to a tokenizer without one."""
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_DATE = "26 Jul 2024"
"""What a template gets that shows today's date, so that a prompt is the same tomorrow."""


class ChatTemplate:
    """The chat template of a codec's tokenizer.

    `end` is the id with which the template ends a response, `stops` are all ids that end one. Raises `UserError` where
    there is no template, it cannot be used, or nothing ends a response.
    """

    def __init__(self, codec: Codec, stops: Iterable[int] = ()) -> None:
        self.codec = codec
        tokenizer = codec.tokenizer
        if not tokenizer.chat_template:
            raise UserError(
                "the model's tokenizer has no chat template, which every rollout.format but 'marks' needs: set "
                "model.chat_template = 'chatml', which gives it one"
            )
        special = sorted(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        self._special = re.compile("|".join(map(re.escape, special))) if special else None
        self.end = self._end(set(special))
        self.stops = frozenset({self.end, *stops})

    def render(self, messages: Sequence[tuple[str, str]], answer: bool = True) -> str:
        """Return the text of a chat of (role, content), with `answer` up to where the model's response begins."""
        try:
            text = self.codec.tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in messages],
                tokenize=False,
                add_generation_prompt=answer,
                date_string=_DATE,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise UserError(f"the model's chat template cannot write a chat: {error}") from error
        return str(text)

    def encode(self, text: str) -> Ids:
        """Return the ids of rendered text; special tokens in it count as what they are."""
        return self.codec.encode_special(text)

    def clean(self, text: str) -> str:
        """Return a text in which the name of a special token is broken by a blank: no world or model may say one."""
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text) if self._special else text

    def _end(self, special: set[str]) -> int:
        """Return the id behind a response: the template's own, else the tokenizer's end of sequence."""
        written = self.render((("user", "question"), ("assistant", "response")), answer=False)
        ids = self.encode(written.rpartition("response")[2].lstrip())
        tokenizer = self.codec.tokenizer
        if ids and str(tokenizer.convert_ids_to_tokens(ids[0])) in special:
            return ids[0]
        if not isinstance(tokenizer.eos_token_id, int):
            raise UserError(
                "nothing ends a response of this model: its chat template has no mark, its tokenizer no end"
            )
        return tokenizer.eos_token_id


def stops_of(network: PreTrainedModel, codec: Codec) -> tuple[int, ...]:
    """Return the ids at which the model itself ends: its generation configuration's and its tokenizer's."""
    found = getattr(network.generation_config, "eos_token_id", None)
    listed = found if isinstance(found, list) else [found]
    return tuple(i for i in (*listed, codec.tokenizer.eos_token_id) if isinstance(i, int))
