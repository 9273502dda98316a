"""The placebo's exchange of targets: a permutation, no own text where that can be, lengths kept where they can."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envrl.batches.placebo import Placebo, derange
from envrl.errors import UserError


def check(texts: list[str], lengths: list[int], placebo: Placebo) -> None:
    source = placebo.source_N.tolist()
    assert sorted(source) == list(range(len(texts)))
    assert placebo.coincidences == sum(texts[s] == t for s, t in zip(source, texts, strict=True))
    assert placebo.other_length == sum(lengths[s] != n for s, n in zip(source, lengths, strict=True))


def fewest_coincidences(texts: list[str]) -> int:
    # a text m times among n has n − m places that are not its own
    return max(0, 2 * max(Counter(texts).values(), default=0) - len(texts))


texts_of_length = st.lists(st.tuples(st.integers(1, 3), st.sampled_from("abc")), max_size=24)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(pairs=texts_of_length, seed=st.integers(0, 5))
def test_no_permutation_has_fewer_coincidences(pairs: list[tuple[int, str]], seed: int):
    texts, lengths = [c * n for n, c in pairs], [n for n, _ in pairs]
    placebo = derange(texts, lengths, seed)
    check(texts, lengths, placebo)
    assert placebo.coincidences == fewest_coincidences(texts)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pairs=texts_of_length, seed=st.integers(0, 5))
def test_bins_that_can_help_themselves_keep_their_lengths(pairs: list[tuple[int, str]], seed: int):
    texts, lengths = [c * n for n, c in pairs], [n for n, _ in pairs]
    bins = [[t for t, m in zip(texts, lengths, strict=True) if m == n] for n in set(lengths)]
    if all(fewest_coincidences(b) == 0 for b in bins):
        assert derange(texts, lengths, seed).other_length == 0


def test_a_bin_of_one_trades_with_the_nearest_length():
    texts, lengths = ["a", "b", "c", "d", "far"], [5, 5, 7, 6, 40]
    for seed in range(20):
        placebo = derange(texts, lengths, seed)
        assert placebo.coincidences == 0
        # 7 and 6 trade with each other; 40 has to take a partner from 7, its nearest then
        assert lengths[placebo.source_N[4]] in (6, 7)
        assert sorted(placebo.source_N[:2].tolist()) == [0, 1]


def test_a_bin_of_one_text_trades_only_as_much_as_it_must():
    # "nothing" fills a bin of 4; the bin of length 4 has 20 different texts
    texts = ["nothing"] * 4 + [f"text {i}" for i in range(20)]
    lengths = [3] * 4 + [4] * 20
    placebo = derange(texts, lengths, 0)
    check(texts, lengths, placebo)
    assert (placebo.coincidences, placebo.other_length) == (0, 8)


def test_more_than_half_of_everything_leaves_the_unavoidable_rest():
    texts, lengths = ["nothing"] * 7 + ["a", "b", "c"], [3] * 7 + [3, 4, 9]
    placebo = derange(texts, lengths, 1)
    check(texts, lengths, placebo)
    assert placebo.coincidences == 4  # 2 · 7 − 10


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "a"]])
def test_where_nothing_can_be_exchanged(texts: list[str]):
    placebo = derange(texts, [1] * len(texts), 0)
    check(texts, [1] * len(texts), placebo)
    assert placebo.coincidences == len(texts)


def test_the_same_seed_gives_the_same_exchange_and_another_another():
    texts, lengths = [f"text {i % 30}" for i in range(200)], [i % 7 for i in range(200)]
    first, again, other = (
        derange(texts, lengths, [3, 1]),
        derange(texts, lengths, [3, 1]),
        derange(texts, lengths, [3, 2]),
    )
    assert first.source_N.tolist() == again.source_N.tolist()
    assert first.source_N.tolist() != other.source_N.tolist()


def test_every_foreign_target_is_about_as_likely():
    # four texts of equal length: 9 derangements; each foreign target in a third of the seeds (σ = 0.0086)
    counts = np.zeros((4, 4))
    for seed in range(3000):
        counts[np.arange(4), derange("abcd", [1] * 4, seed).source_N] += 1
    assert np.diag(counts).sum() == 0
    off_diagonal = counts[~np.eye(4, dtype=bool)] / 3000
    assert np.abs(off_diagonal - 1 / 3).max() < 0.05


def test_token_ids_serve_as_targets():
    targets = [(1, 2), (1, 2), (3, 4), (5, 6)]
    placebo = derange(targets, [2] * 4, 0)
    assert all(targets[s] != t for s, t in zip(placebo.source_N, targets, strict=True))


def test_unequal_lists_are_refused():
    with pytest.raises(UserError, match="1 lengths for 2 targets"):
        derange(["a", "b"], [1], 0)


def test_rows_do_not_simply_swap_in_pairs():
    # 15 of the 265 derangements of six are three swaps; trades alone, without the shuffle before, make nothing else
    swaps = 0
    for seed in range(500):
        source = derange("abcdef", [1] * 6, seed).source_N
        swaps += bool((source[source] == np.arange(6)).all())
    assert swaps < 100
