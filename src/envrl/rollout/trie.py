"""Which tokens may come next when sampling is restricted to a list of commands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from envrl.models.tokenizer import Codec
from envrl.rollout.formats import action_ids

Node = dict[int, "Node"]  # the next tokens and where they lead; a leaf is empty


def build_trie(sequences: Sequence[Sequence[int]]) -> Node:
    """Return the prefix tree of token sequences, children in the order of their ids.

    Every sequence ends with the closing mark, so none is a prefix of another.
    """
    root: Node = {}
    for sequence in sorted(map(tuple, sequences)):
        node = root
        for token in sequence:
            node = node.setdefault(token, {})
    return root


class Commands:
    """Lists of admissible commands in tokens: `trie(list)`, None for an empty one, and `longest(list)`, its tokens.

    What was asked before is not built again.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.trie = lru_cache(maxsize=20_000)(self._trie)
        self.longest = lru_cache(maxsize=20_000)(self._longest)

    def _trie(self, admissible: tuple[str, ...]) -> Node | None:
        return build_trie([action_ids(self._codec, command) for command in admissible]) if admissible else None

    def _longest(self, admissible: tuple[str, ...]) -> int:
        return max((len(action_ids(self._codec, command)) for command in admissible), default=0)
