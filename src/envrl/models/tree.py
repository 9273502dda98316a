"""Rows of token ids as a prefix tree: a shared prefix exists once. The network runs the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envrl.sequences import common_prefix, order
from envrl.types import IntArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Branch:
    """The nodes of one row: `path` (tokens of the row); from index `shared` on they are its own, and consecutive."""

    path: Indices
    shared: int

    @property
    def own(self) -> slice:
        """The range of nodes that no earlier row has."""
        first = int(self.path[self.shared]) if self.shared < len(self.path) else 0
        return slice(first, first + len(self.path) - self.shared)


@dataclass(frozen=True, slots=True)
class Tree:
    """The nodes of rows: their token `ids` and `positions` (nodes,), and each row's branch, in the rows' order."""

    ids: Indices
    positions: Indices
    branches: tuple[Branch, ...]

    @property
    def forks(self) -> bool:
        """True if any node is in several rows."""
        return any(branch.shared for branch in self.branches)

    def before(self, distance: int) -> Indices:
        """Return the node `distance` tokens before each node (nodes,), or the number of nodes if there is none."""
        nodes = np.full(len(self.ids), len(self.ids), dtype=np.int64)
        for branch in self.branches:
            nodes[branch.path[distance:]] = branch.path[:-distance] if distance else branch.path
        return nodes


def tree_of(rows: Sequence[IntArray]) -> Tree:
    """Return the tree of rows: in lexicographic order, each row shares its longest prefix with the row before it."""
    branches: dict[int, Branch] = {}
    parts, count = [], 0
    last, path = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
    for number in sorted(range(len(rows)), key=lambda number: order(rows[number])):
        row = rows[number]
        shared = common_prefix(last, row)
        own = len(row) - shared
        path = np.concatenate([path[:shared], np.arange(count, count + own)])
        branches[number] = Branch(path, shared)
        parts.append((row[shared:], np.arange(shared, len(row))))
        last, count = row, count + own
    ids, positions = (np.concatenate([part[side] for part in parts]).astype(np.int64) for side in (0, 1))
    return Tree(ids, positions, tuple(branches[number] for number in range(len(rows))))
