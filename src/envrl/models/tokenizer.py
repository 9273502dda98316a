"""A byte-level BPE tokenizer trained on a world's texts, and the codec through which the program uses any tokenizer.

Policies copy the names of numbered things ("drawer 2"), so a name and its number must be separate tokens, the same in
every context. Everything between names may merge into phrases ("You arrive at"), which halves the length of episodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from envrl.models.texts import encodable
from envrl.sequences import common_prefix
from envrl.types import Ids

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


MARKS = {
    "pad": "<|pad|>",
    "task": "<|task|>",
    "observation": "<|observation|>",
    "commands": "<|commands|>",
    "action": "<|action|>",
    "end": "<|end|>",
    "state": "<|state|>",
    "inverse": "<|inverse|>",
    "next": "<|next|>",
}
"""The special tokens of the format `marks`. No text can produce one: the tokenizer does not look for them in texts."""

_WORD = r"\p{L}+"
_NUMBER = r" ?\p{N}+"


def names_in(texts: Iterable[str]) -> list[str]:
    """Return the words that occur before a number in the texts, sorted: the names of numbered things."""
    words: set[str] = set()
    for text in texts:
        words.update(re.findall(r"([^\W\d_]+) \d", text))
    return sorted(name for name in words if name.isalpha())  # "m²" is a word to Python, but has a digit


def split_pattern(names: Sequence[str]) -> str:
    """Return the regular expression of pre-tokens: numbers, names, and phrases without either.

    If a world numbers nothing, phrases are single words, since any word may be copied.
    """
    if not names:
        return rf"{_NUMBER}| ?{_WORD}|[^\p{{L}}\p{{N}}]+?(?= ?[\p{{L}}\p{{N}}])|[^\p{{L}}\p{{N}}]+"
    alternatives = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    name = rf" ?(?<!\p{{L}})(?:{alternatives})(?!\p{{L}})"
    return rf"{_NUMBER}|{name}|(?:(?!{name}|{_NUMBER})[\s\S])+"


def train_tokenizer(
    texts: Sequence[str], vocabulary: int, context: int, phrases: bool = True
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most `vocabulary` ids on texts; `decode(encode(x)) == x` for any text.

    Without `phrases` no token is longer than a word, as for a world that numbers nothing.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(names_in(texts) if phrases else ())), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=8,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(mark, special=True, normalized=False) for mark in MARKS.values()],
    )
    core.train_from_iterator(map(encodable, texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=MARKS["pad"],
        eos_token=MARKS["end"],
        additional_special_tokens=[mark for key, mark in MARKS.items() if key not in ("pad", "end")],
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )


class Codec:
    """Text to ids and back, with a cache of encoded texts.

    `marks` are the ids of our marks, empty for a tokenizer without them (a chat model's own); `pad` is the padding id.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        known = all(mark in vocabulary for mark in MARKS.values())
        self.marks = {key: vocabulary[mark] for key, mark in MARKS.items()} if known else {}
        self.mark_ids = frozenset(self.marks.values())
        fills = (self.marks.get("pad"), tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad = next(i for i in fills if isinstance(i, int))
        self.encode = lru_cache(maxsize=200_000)(self._encode)
        self.encode_special = lru_cache(maxsize=20_000)(self._encode_special)
        self.piece = lru_cache(maxsize=None)(self._piece)

    def __reduce__(self) -> tuple[type[Codec], tuple[PreTrainedTokenizerBase]]:
        return Codec, (self.tokenizer,)  # a copy in another process begins with empty caches

    def _encode(self, text: str) -> Ids:
        return tuple(self.tokenizer.encode(encodable(text), add_special_tokens=False, split_special_tokens=True))

    def _encode_special(self, text: str) -> Ids:
        return tuple(self.tokenizer.encode(encodable(text), add_special_tokens=False, split_special_tokens=False))

    def tokens_within(self, text: str, start: int, stop: int) -> tuple[int, int]:
        """Return the range of tokens of `encode_special(text)` that contain the characters `start:stop`."""
        if not self.tokenizer.is_fast:
            return self._tokens_between(text, start, stop)
        offsets = self.tokenizer(
            encodable(text), add_special_tokens=False, split_special_tokens=False, return_offsets_mapping=True
        )["offset_mapping"]
        inside = [number for number, (begin, end) in enumerate(offsets) if begin < stop and end > start]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)

    def _tokens_between(self, text: str, start: int, stop: int) -> tuple[int, int]:
        """Return that range for a tokenizer in Python, which gives no offsets: all tokens but those on both sides."""
        ids = self.encode_special(text)
        before = common_prefix(ids, self.encode_special(text[:start]))
        behind = common_prefix(ids[::-1], self.encode_special(text[stop:])[::-1])
        return (before, len(ids) - behind) if before + behind < len(ids) else (0, 0)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without our marks but with other special tokens."""
        plain = [i for i in ids if i not in self.mark_ids]
        return str(self.tokenizer.decode(plain, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id; of a character in several tokens the last one has it, the others are empty."""
        texts: list[str] = []
        begin = read = 0  # the text before `read` is known; ids from `begin` on are decoded with it, for their spaces
        for stop in range(1, len(ids) + 1):
            known, text = self.decode(ids[begin:read]), self.decode(ids[begin:stop])
            if text.endswith("\N{REPLACEMENT CHARACTER}") and stop < len(ids):
                texts.append("")
                continue
            texts.append(text[len(known) :])
            begin, read = read, stop
        return texts

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return each id as the vocabulary spells it, with its spaces: fast, exact for letters and digits of ASCII."""
        return [self.piece(each) for each in ids]

    def _piece(self, token: int) -> str:
        spelled = str(self.tokenizer.convert_ids_to_tokens(token))
        return re.sub("[\u0120\u2581]", " ", spelled).replace("\u010a", "\n")  # how BPE and SentencePiece write them

    def __len__(self) -> int:
        return len(self.tokenizer)


def forget_how_loaded(tokenizer: PreTrainedTokenizerBase) -> None:
    """Remove a tokenizer's record of how it was loaded, which should not be saved."""
    for name in ("is_local", "local_files_only", "gguf_file"):
        tokenizer.init_kwargs.pop(name, None)
