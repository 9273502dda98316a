"""Rows as a tree: every row is found again, and nothing is there twice."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from envrl.models.tree import tree_of
from envrl.sequences import common_prefix, order
from envrl.types import IntArray

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=7)


def arrays(rows: list[list[int]]) -> list[IntArray]:
    return [np.array(row, dtype=np.int32) for row in rows]


def test_three_rows_by_hand() -> None:
    tree = tree_of(arrays([[5, 6, 8], [5, 6, 7, 7], [5, 9]]))
    assert tree.ids.tolist() == [5, 6, 7, 7, 8, 9]
    assert tree.positions.tolist() == [0, 1, 2, 3, 2, 1]
    assert [branch.path.tolist() for branch in tree.branches] == [[0, 1, 4], [0, 1, 2, 3], [0, 5]]
    assert [branch.shared for branch in tree.branches] == [2, 0, 1]
    assert [branch.own for branch in tree.branches] == [slice(4, 5), slice(0, 4), slice(5, 6)]
    assert tree.before(1).tolist() == [6, 0, 1, 2, 1, 0]
    assert tree.before(2).tolist() == [6, 6, 0, 1, 0, 6]


@given(ROWS)
def test_a_path_holds_its_row_and_every_beginning_is_there_once(rows: list[list[int]]) -> None:
    tree = tree_of(arrays(rows))
    for row, branch in zip(rows, tree.branches, strict=True):
        assert tree.ids[branch.path].tolist() == row
        assert tree.positions[branch.path].tolist() == list(range(len(row)))
    beginnings = {tuple(row[:length]) for row in rows for length in range(1, len(row) + 1)}
    assert len(tree.ids) == len(beginnings)
    owned = sorted(node for branch in tree.branches for node in range(branch.own.start, branch.own.stop))
    assert owned == list(range(len(tree.ids))), "every node is one row's own"


@given(ROWS, st.integers(1, 4))
def test_the_node_before_is_that_of_the_same_row(rows: list[list[int]], distance: int) -> None:
    tree = tree_of(arrays(rows))
    before = tree.before(distance)
    for branch in tree.branches:
        for place, node in enumerate(branch.path):
            assert before[node] == (branch.path[place - distance] if place >= distance else len(tree.ids))


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=4)))
def test_rows_are_in_the_order_of_their_numbers(rows: list[list[int]]) -> None:
    assert sorted(rows, key=order) == sorted(rows)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_how_much_two_sequences_begin_with_alike(one: list[int], other: list[int]) -> None:
    length = common_prefix(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]
