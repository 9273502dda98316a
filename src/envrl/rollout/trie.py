"""Which tokens may come next when sampling is restricted to the commands that the world would accept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from envrl.models.tokenizer import Codec, Ids
from envrl.types import Observation, Template

if TYPE_CHECKING:
    from envrl.rollout.wording import Wording

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


class FreeWords:
    """A template in tokens: its first part, then some of its words in their order, each once at most, then its end.

    A position in it is (tokens still to come, number of the word that they end), -1 for the first part and None for
    the last; where a word ends, any later one or the last part may begin.
    """

    def __init__(self, codec: Codec, template: Template, end: int) -> None:
        words = tuple(dict.fromkeys(template.words))
        before = template.before.rstrip(" ")  # a blank belongs to the token behind it, as the tokenizer has it
        self._first = [codec.encode(template.before[len(before) :] + word) for word in words]
        self._later = [codec.encode(f" {word}") for word in words]
        self._end = (*codec.encode(template.after), end)
        self.start: tuple[Ids, int | None] = (codec.encode(before), -1)
        self.longest = len(self.start[0]) + sum(map(len, self._later)) + len(self._end)

    def after(self, word: int) -> list[tuple[Ids, int | None]]:
        """Return the positions that follow the end of a word."""
        if word < 0:
            return list(zip(self._first, range(len(self._first)), strict=True))
        later = range(word + 1, len(self._later))
        return [*((self._later[number], number) for number in later), (self._end, None)]


def build_graph(sequences: Sequence[Ids], templates: Sequence[FreeWords]) -> Node:
    """Return the graph of all token sequences that are one of `sequences` or follow a template.

    Like a prefix tree, but what can follow in the same way is one node, since templates have no list of sequences.
    """
    nodes: dict[frozenset[tuple[int, Ids, int | None]], Node] = {}
    start = frozenset([(-1, tuple(ids), None) for ids in sequences] + [(n, *t.start) for n, t in enumerate(templates)])
    nodes[start] = {}
    waiting = [start]
    while waiting:
        positions = waiting.pop()
        ways: dict[int, set[tuple[int, Ids, int | None]]] = {}
        for which, ids, word in positions:
            rest = ids[1:]
            onward = ways.setdefault(ids[0], set())
            if rest:
                onward.add((which, rest, word))
            elif word is not None:
                onward.update((which, *position) for position in templates[which].after(word))
        for token in sorted(ways):
            onward = frozenset(ways[token])
            if onward not in nodes:
                nodes[onward] = {}
                waiting.append(onward)
            nodes[positions][token] = nodes[onward]
    return nodes[start]


class Commands:
    """What an observation accepts, in tokens: its `trie`, None for nothing, and the tokens of its `longest` command.

    The wording says what a command is as a response. What was asked before is not built again.
    """

    def __init__(self, codec: Codec, wording: Wording) -> None:
        self._respond = wording.respond
        self._tries = lru_cache(maxsize=20_000)(self._trie)
        self._lengths = lru_cache(maxsize=20_000)(self._longest)
        self._template = lru_cache(maxsize=20_000)(lambda template: FreeWords(codec, template, wording.end))

    def trie(self, observation: Observation) -> Node | None:
        return self._tries(observation.admissible or (), _with_words(observation))

    def longest(self, observation: Observation) -> int:
        return self._lengths(observation.admissible or (), _with_words(observation))

    def _trie(self, admissible: tuple[str, ...], templates: tuple[Template, ...]) -> Node | None:
        sequences = [self._respond(command) for command in admissible]
        if templates:
            return build_graph(sequences, [self._template(template) for template in templates])
        return build_trie(sequences) if sequences else None

    def _longest(self, admissible: tuple[str, ...], templates: tuple[Template, ...]) -> int:
        lengths = [len(self._respond(command)) for command in admissible]
        return max([*lengths, *(self._template(template).longest for template in templates)], default=0)


def _with_words(observation: Observation) -> tuple[Template, ...]:
    return tuple(template for template in observation.templates if template.words)
