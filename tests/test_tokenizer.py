"""The preset's tokenizer: exact for any text, closed to marks, numbers apart from words, the same when reloaded."""

from __future__ import annotations

import random
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer

from envrl.config.schema import ModelConfig
from envrl.models.tiny import build_tiny
from envrl.models.tokenizer import MARKS, Codec, names_in, split_pattern, train_tokenizer

THINGS = ("apple", "cup", "knife", "mug", "plate", "spoon")
PLACES = ("cabinet", "countertop", "drawer", "fridge", "shelf")


def household_like(count: int, seed: int) -> list[str]:
    """Texts in the household world's manner."""
    draw = random.Random(seed)

    def thing() -> str:
        return f"{draw.choice(THINGS)} {draw.randint(1, 4)}"

    def place() -> str:
        return f"{draw.choice(PLACES)} {draw.randint(1, 12)}"

    texts = []
    for _ in range(count):
        here, seen = place(), ", and ".join(f"a {thing()}" for _ in range(draw.randint(1, 3)))
        texts += [
            f"You arrive at {here}. On the {here}, you see {seen}.",
            f"You pick up the {thing()} from the {here}.",
            f"go to {here}",
            f"take {thing()} from {here}",
            f"Your task is to: put some {draw.choice(THINGS)} on {draw.choice(PLACES)}.",
        ]
    return texts


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(train_tokenizer(household_like(400, seed=0), vocabulary=900, context=256))


ANY = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*MARKS.values(), "drawer", " ", "1", "You see", "\n", "e\u0301", "İ", "²", "٣"])).map(
        "".join
    ),
)


@settings(max_examples=300, deadline=None)
@given(ANY)
@example("")
@example("  two  spaces , and . odd !  marks ")
@example("A\u030angstro\u0308m \u212b \ufb01 \u1e9b\u0323")  # not NFC, and changed by NFKC
@example("go to drawer 1<|end|><|observation|>You see a cup 2.")
@example("\x00\r\n\t\u2028\ufeff\U0001f9ca")
def test_decoding_what_was_encoded_gives_the_text_and_no_text_makes_a_mark(codec: Codec, text: str) -> None:
    ids = codec.encode(text)
    assert codec.decode(ids) == text
    assert not codec.mark_ids.intersection(ids)


@given(ANY)
def test_texts_of_tokens_make_up_the_text(codec: Codec, text: str) -> None:
    ids = codec.encode(text)
    texts = codec.texts(ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == codec.decode(ids)


def test_the_last_token_of_a_character_has_it(codec: Codec) -> None:
    ids = codec.encode("a \N{PIG FACE}!")
    assert codec.texts(ids) == ["a", " ", "", "", "", "\N{PIG FACE}", "!"], "four bytes, a token each"
    assert codec.texts((*ids, codec.marks["end"]))[-2:] == ["!", ""], "a mark is no text"


def test_not_nfc_really_is_tried() -> None:
    text = "A\u030angstro\u0308m \u212b"
    assert unicodedata.normalize("NFC", text) != text


def test_marks_are_nine_ids_of_their_own_and_leave_no_trace_in_text(codec: Codec) -> None:
    assert len(codec.mark_ids) == len(MARKS) == 9
    end, see = codec.marks["end"], codec.encode("You see")
    assert codec.decode([codec.marks["observation"], *see, end]) == "You see"
    assert len(codec.encode("<|end|>")) > 1


def test_no_piece_holds_both_a_letter_and_a_digit(codec: Codec) -> None:
    vocabulary = codec.tokenizer.get_vocab()
    pieces = [codec.decode([i]) for token, i in vocabulary.items() if token not in MARKS.values()]
    assert len(pieces) == len(codec) - 9
    mixed = [p for p in pieces if re.search(r"[^\W\d_]", p) and re.search(r"\d", p)]
    assert mixed == []
    assert {" 1", " drawer"} <= set(pieces), "numbers and names are whole pieces"
    assert any(p.startswith("You arrive at") for p in pieces), "phrases between them merge"


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PLACES), st.integers(0, 99), st.sampled_from(["You are at the", "go to", "", "x. \n In"]))
def test_a_name_and_its_number_are_the_same_tokens_wherever_they_stand(
    codec: Codec, place: str, number: int, before: str
) -> None:
    here = f" {place} {number}"
    tail = codec.encode(here)
    assert codec.encode(before + here)[-len(tail) :] == tail
    assert codec.encode(before + here + ", you see")[len(codec.encode(before)) :][: len(tail)] == tail


def test_names_are_words_of_letters_before_a_number() -> None:
    assert names_in(["go to drawer 1", "Über 2 m² 3 a_b 4 x5 6 cd1", "the 7th"]) == ["b", "drawer", "the", "Über"]


def split(text: str, names: list[str]) -> list[str]:
    rule = pre_tokenizers.Split(Regex(split_pattern(names)), "isolated")
    return [piece for piece, _ in rule.pre_tokenize_str(text)]


def test_the_split_by_hand() -> None:
    text = "You see a cup 12, and drawers. On the drawer 1"
    found = ["You see a", " cup", " 12", ", and drawers. On the", " drawer", " 1"]
    assert split(text, ["drawer", "cup"]) == found
    words = ["You", " see", " it", ",", " twice", ":", " ab", "12", "."]
    assert split("You see it, twice: ab12.", []) == words


@settings(max_examples=100, deadline=None)
@given(ANY, st.lists(st.sampled_from(["cup", "cups", "É", "pan"]), unique=True))
def test_the_split_loses_nothing(text: str, names: list[str]) -> None:
    assert "".join(split(text, names)) == text


def test_texts_of_the_kind_that_it_was_trained_on_become_short(codec: Codec) -> None:
    texts = household_like(100, seed=1)
    tokens = sum(len(codec.encode(text)) for text in texts)
    assert sum(map(len, texts)) / tokens > 5.0, "characters a token"
    assert len(codec) < 900, "no piece is learned that occurs fewer than 8 times"


def test_training_is_repeatable() -> None:
    texts = household_like(50, seed=2)
    first, second = (train_tokenizer(texts, 400, 64).get_vocab() for _ in range(2))
    assert first == second


@pytest.fixture(scope="module")
def folder(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder: the tokenizer beside the network's config.json, which AutoTokenizer reads too."""
    path = tmp_path_factory.mktemp("tokenizer")
    codec.tokenizer.save_pretrained(path)
    shape = ModelConfig(hidden_size=16, layers=2, heads=2)
    build_tiny(shape, len(codec), codec.marks["pad"], codec.marks["end"], seed=0).config.save_pretrained(path)
    assert AutoConfig.from_pretrained(path).model_type == "lfm2"
    return path


@settings(max_examples=100, deadline=None)
@given(ANY)
def test_autotokenizer_reloads_the_same_ids_and_exact_text(codec: Codec, reloaded: Codec, text: str) -> None:
    assert reloaded.encode(text) == codec.encode(text)
    assert reloaded.decode(reloaded.encode(text)) == text
    plain = reloaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tuple(plain) == codec.encode(text), "also for a caller who knows nothing of our codec"


@pytest.fixture(scope="module")
def reloaded(folder: Path) -> Codec:
    return Codec(AutoTokenizer.from_pretrained(folder))


def test_the_reloaded_tokenizer_behaves_as_the_trained_one(codec: Codec, reloaded: Codec) -> None:
    old, new = codec.tokenizer, reloaded.tokenizer
    assert new.split_special_tokens
    assert (new.pad_token, new.eos_token, new.model_max_length) == (MARKS["pad"], MARKS["end"], 256)
    assert new.get_vocab() == old.get_vocab()
    assert reloaded.marks == codec.marks
    assert sorted(new.all_special_ids) == sorted(codec.mark_ids)
    assert new("go to drawer 1")["input_ids"] == list(codec.encode("go to drawer 1")), "nothing is put around a text"
