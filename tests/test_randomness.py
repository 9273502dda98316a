"""Keyed random numbers: known values, even spread, and no dependence on what else is drawn."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from envrl.randomness import key_of, mix, uniforms


def test_mix_is_splitmix64() -> None:
    # The first outputs of the reference generator started from 0: its state grows by the golden ratio's constant.
    states = np.array([0, 0x9E3779B97F4A7C15, 0x3C6EF372FE94F82A], dtype=np.uint64)
    assert [hex(word) for word in mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_keys_are_the_same_on_every_machine() -> None:
    # BLAKE2b of "0\x1f1\x1ftrain/7\x1f3", 8 bytes, little-endian (checked with Python's hashlib and coreutils' b2sum).
    assert key_of(0, 1, "train/7", 3) == 1254279399347027860
    assert key_of("ab", "c") != key_of("a", "bc")
    assert key_of(1, 23) != key_of(12, 3)


def test_a_number_is_the_same_every_time() -> None:
    keys = np.array([key_of(0, 1, "train/7", 3)], dtype=np.uint64)
    assert uniforms(keys, 2, np.array([5])).tolist() == [0.3955922819189426]


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20, unique=True),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.randoms(use_true_random=False),
)
def test_a_number_belongs_to_its_key_turn_and_token_alone(
    keys: list[int], turn: int, token: int, shuffle: random.Random
) -> None:
    def draw(some: list[int]) -> dict[int, float]:
        numbers = uniforms(np.array(some, dtype=np.uint64), turn, np.full(len(some), token, dtype=np.int64))
        return dict(zip(some, numbers.tolist(), strict=True))

    whole = draw(keys)
    part = shuffle.sample(keys, shuffle.randint(1, len(keys)))
    assert draw(part) == {key: whole[key] for key in part}
    assert all(0.0 <= number < 1.0 for number in whole.values())


def test_numbers_are_spread_evenly_over_keys_turns_and_tokens() -> None:
    keys = np.array([key_of(0, update, "task", member) for update in range(50) for member in range(8)], dtype=np.uint64)
    drawn = np.concatenate(
        [uniforms(keys, turn, np.full(len(keys), token)) for turn in range(10) for token in range(5)]
    )
    counts, _ = np.histogram(drawn, bins=100, range=(0.0, 1.0))
    expected = len(drawn) / 100
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 60 < chi_square < 149, "99 degrees of freedom: the middle 99.8 %"
    assert len(np.unique(drawn)) == len(drawn)


def test_neighbours_are_not_correlated() -> None:
    keys = np.array([key_of(0, 0, "task", member) for member in range(4000)], dtype=np.uint64)
    zero, one = np.zeros(len(keys), dtype=np.int64), np.ones(len(keys), dtype=np.int64)
    columns = [uniforms(keys, 0, zero), uniforms(keys, 0, one), uniforms(keys, 1, zero), uniforms(keys, 1, one)]
    matrix = np.atleast_2d(np.corrcoef(columns))
    correlations = matrix[np.triu_indices(4, k=1)]
    assert np.abs(correlations).max() < 4 / np.sqrt(len(keys))
