"""Prefix trees of tokens, which restrict sampling to the commands that the world accepts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from envrl.types import Ids, Observation, Template

if TYPE_CHECKING:
    from envrl.models.tokenizer import Codec
    from envrl.rendering.renderer import Renderer

Node = dict[int, "Node"]  # maps each possible next token to its node; a leaf is empty


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


Position = tuple[Ids, int | None]
"""A position in a template: the tokens to come, and the index of the word that they complete (-1: the first part,
None: the last part)."""


class FreeWords:
    """A template in tokens: its first part, then some of its words in order, each at most once, then its last part.

    After a word, any later word or the last part may begin. `words` are those that the tokenizer can write; `lead` are
    the tokens before the first part.
    """

    def __init__(self, codec: Codec, template: Template, end: int, lead: Ids = ()) -> None:
        before = template.before.rstrip(" ")  # the tokenizer joins a blank to the token after it
        blank = template.before[len(before) :]
        spelled = {word: (codec.encode(blank + word), codec.encode(f" {word}")) for word in template.words}
        spelled = {word: ways for word, ways in spelled.items() if all(ways)}
        self.template, self.words = template, list(spelled)
        self._first = [first for first, _ in spelled.values()]
        self._later = [later for _, later in spelled.values()]
        self._end = (*codec.encode(template.after), end)
        opening = (*lead, *codec.encode(before))
        self.start: list[Position] = [(opening, -1)] if opening else self.after(-1)
        longest = (max(map(len, ways)) for ways in spelled.values())
        self.longest = len(opening) + sum(longest) + len(self._end)

    def after(self, word: int) -> list[Position]:
        """Return the positions that follow the end of a word."""
        if word < 0:
            return list(zip(self._first, range(len(self._first)), strict=True))
        later = range(word + 1, len(self._later))
        return [*((self._later[number], number) for number in later), (self._end, None)]

    def command(self, ids: Ids) -> str | None:
        """Return the command of these tokens, or None if they are not a path through the template.

        The words are the template's own text, so the tokenizer's treatment of blanks and letters does not matter.
        """
        ways: dict[Position, tuple[int, ...]] = {place: _entered((), place[1]) for place in self.start}
        for token in ids:
            onward: dict[Position, tuple[int, ...]] = {}
            for (rest, word), drawn in ways.items():
                if rest[:1] != (token,):
                    continue
                if rest[1:] or word is None:
                    onward.setdefault((rest[1:], word), drawn)
                else:
                    for place in self.after(word):
                        onward.setdefault(place, _entered(drawn, place[1]))
            ways = onward
        drawn = ways.get(((), None))
        if drawn is None:
            return None
        return f"{self.template.before}{' '.join(self.words[number] for number in drawn)}{self.template.after}"


def _entered(drawn: tuple[int, ...], word: int | None) -> tuple[int, ...]:
    return (*drawn, word) if word is not None and word >= 0 else drawn


def build_graph(sequences: Sequence[Ids], templates: Sequence[FreeWords]) -> Node:
    """Return the graph of all token sequences that are in `sequences` or follow a template.

    It is a prefix tree with equal continuations merged into one node, since a template has too many sequences to list.
    """
    nodes: dict[frozenset[tuple[int, Ids, int | None]], Node] = {}
    opening = [(number, *place) for number, template in enumerate(templates) for place in template.start]
    start = frozenset([(-1, tuple(ids), None) for ids in sequences] + opening)
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
    """The commands of an observation in tokens: their `trie` (None if there are none), and the `longest` one's length.

    The renderer writes each command as a response. Results are cached.
    """

    def __init__(self, codec: Codec, renderer: Renderer) -> None:
        self._respond = renderer.respond
        self._tries = lru_cache(maxsize=20_000)(self._trie)
        self._lengths = lru_cache(maxsize=20_000)(self._longest)
        self._template = lru_cache(maxsize=20_000)(lambda free: FreeWords(codec, free, renderer.end, renderer.lead))

    def trie(self, observation: Observation) -> Node | None:
        return self._tries(observation.admissible or (), _with_words(observation))

    def longest(self, observation: Observation) -> int:
        return self._lengths(observation.admissible or (), _with_words(observation))

    def command(self, observation: Observation, response: Ids) -> str | None:
        """Return the command of a response that followed the trie, or None if it did not.

        The result is the world's own text; decoding the tokens could change blanks or letters.
        """
        for command in observation.admissible or ():
            if self._respond(command) == response:
                return command
        spelled = (self._template(template).command(response) for template in _with_words(observation))
        return next((command for command in spelled if command is not None), None)

    def _trie(self, admissible: tuple[str, ...], templates: tuple[Template, ...]) -> Node | None:
        sequences = [self._respond(command) for command in admissible]
        worded = [free for template in templates if (free := self._template(template)).words]
        if worded:
            return build_graph(sequences, worded)
        return build_trie(sequences) if sequences else None

    def _longest(self, admissible: tuple[str, ...], templates: tuple[Template, ...]) -> int:
        lengths = [len(self._respond(command)) for command in admissible]
        return max([*lengths, *(self._template(template).longest for template in templates)], default=0)


def _with_words(observation: Observation) -> tuple[Template, ...]:
    return tuple(template for template in observation.templates if template.words)
