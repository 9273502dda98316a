"""How ragged chunks are cut into passes: nothing is left out, and no other way of cutting is cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envrl.rollout.passes import COSTS, Costs, Pass, plan_passes

CPU = COSTS["cpu"]


def cost(lengths: Sequence[int], slots: int, cached: int, step: Pass, costs: Costs) -> float:
    """The formula in words: a token each, padding included, and reading, maybe copying, of what was there before."""
    rows = slots if step.whole else sum(length > step.start for length in lengths)
    each = costs.read if step.whole else costs.read + costs.copy
    return costs.begin + rows * (step.stop - step.start) + rows * each * (cached + step.stop)


CHUNKS = st.lists(st.integers(1, 700), min_size=1, max_size=40)


@given(CHUNKS, st.integers(0, 100), st.integers(0, 2000))
def test_passes_follow_each_other_and_end_with_the_longest_chunk(lengths: list[int], others: int, cached: int) -> None:
    passes = plan_passes(lengths, len(lengths) + others, cached, CPU)
    assert (passes[0].start, passes[-1].stop) == (0, max(lengths))
    assert all(first.stop == second.start for first, second in pairwise(passes))
    assert all(step.start < step.stop for step in passes)


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=6),
    st.integers(0, 40),
    st.integers(0, 1500),
    st.sampled_from(sorted(COSTS)),
)
def test_no_other_cut_is_cheaper(lengths: list[int], others: int, cached: int, device: str) -> None:
    costs = COSTS[device]
    slots, ends = len(lengths) + others, sorted(set(lengths))
    planned = sum(cost(lengths, slots, cached, step, costs) for step in plan_passes(lengths, slots, cached, costs))
    for count in range(len(ends)):
        for inner in combinations(ends[:-1], count):
            cuts = [0, *inner, ends[-1]]
            total = sum(
                min(cost(lengths, slots, cached, Pass(start, stop, whole), costs) for whole in (False, True))
                for start, stop in pairwise(cuts)
            )
            assert planned <= total + 1e-6


def test_passes_by_hand() -> None:
    # 6 short and 2 long chunks in 8 slots: 8 × 4 tokens together, then 2 × 656 alone, instead of 8 × 660 at once.
    assert plan_passes([4, 3, 660, 4, 2, 660, 4, 4], 8, 100, CPU) == [Pass(0, 4, True), Pass(4, 660, False)]
    # Equal chunks go at once; one slot of many goes alone; chunks that differ little are padded.
    assert plan_passes([5] * 8, 8, 300, CPU) == [Pass(0, 5, True)]
    assert plan_passes([2], 128, 300, CPU) == [Pass(0, 2, False)]
    assert plan_passes([3] * 60 + [4] * 60, 120, 300, CPU) == [Pass(0, 4, True)]
    # A GPU begins passes slowly and runs tokens fast.
    assert plan_passes([4, 3, 200, 4, 2, 200, 4, 4], 8, 100, CPU) == [Pass(0, 4, True), Pass(4, 200, False)]
    assert plan_passes([4, 3, 200, 4, 2, 200, 4, 4], 8, 100, COSTS["cuda"]) == [Pass(0, 200, True)]


@pytest.mark.parametrize(("busy", "whole"), [(128, True), (100, True), (20, False), (1, False)])
def test_a_pass_takes_all_slots_where_copying_would_cost_more(busy: int, whole: bool) -> None:
    assert plan_passes([1] * busy, 128, 300, CPU) == [Pass(0, 1, whole)]
