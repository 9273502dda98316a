"""BM25 as Lucene scores it, on arrays that can be memory-mapped: exact ranking, a million products in milliseconds.

    score(d) = Σ_t ln(1 + (N − df + ½) / (df + ½)) · tf / (tf + k₁ (1 − b + b · dl / avgdl))        k₁ = 0.9, b = 0.4

over the terms t of the query, repeats included; dl is kept in one byte, as in Lucene; ties go by asin. Source:
S. Robertson and H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009); Anserini 0.22.1.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from envrl.envs.webshop.analysis import analyze
from envrl.envs.webshop.products import Product, read_products, search_text

K1, B = 0.9, 0.4
_EXACT_BELOW = 40
_LONG = 100_000  # entries of a list in which it takes too long to find the best
_BLOCK = 1 << 17  # documents whose scores are added up at once: a megabyte, which stays in the cache
_ARRAYS = ("asins", "starts", "documents", "codes", "weights")


class Index:
    """A search index over products: `search(query)` returns the best (asin, score) pairs, best first."""

    def __init__(self, products: Sequence[Mapping[str, Any]], attributes: Mapping[str, Mapping[str, Any]]) -> None:
        """Index a raw catalogue, as read from the original's files."""
        self._arrays, self._terms = build(read_products(products, attributes))

    @classmethod
    def of(cls, products: Iterable[Product]) -> Index:
        """Return the index of loaded products."""
        index = cls.__new__(cls)
        index._arrays, index._terms = build(products)
        return index

    @classmethod
    def open(cls, folder: Path) -> Index:
        """Return the index that `save` wrote to a folder; its arrays are memory-mapped and shared by processes."""
        index = cls.__new__(cls)
        index._arrays = {name: mapped(folder, name) for name in _ARRAYS}
        index._terms = {
            term: number for number, term in enumerate(json.loads((folder / "terms.json").read_text(encoding="utf-8")))
        }
        return index

    def save(self, folder: Path) -> None:
        """Write the index to an existing folder, for `open`."""
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", self._arrays[name])
        (folder / "terms.json").write_text(json.dumps(list(self._terms), ensure_ascii=False), encoding="utf-8")

    def __len__(self) -> int:
        return len(self._arrays["asins"])

    def search(self, query: str, limit: int = 50) -> list[tuple[str, float]]:
        """Return up to `limit` (asin, score) pairs, best first; none where no product holds a term of the query."""
        counts = Counter(number for term in analyze(query) if (number := self._terms.get(term)) is not None)
        if not counts or limit < 1:
            return []
        documents, scores = self._score(counts, limit)
        # Sums in another order differ in their last digits: equal in float32 is equal, and then the asin decides.
        rounded = scores.astype(np.float32)
        best = np.lexsort((documents, -rounded))[:limit]
        asins = self._arrays["asins"]
        return [(bytes(asins[documents[i]]).decode(), float(scores[i])) for i in best]

    def _score(self, counts: Mapping[int, int], limit: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return documents and their scores, among them the best `limit`; one block of documents after another."""
        lists = [self._postings(term, times) for term, times in sorted(counts.items())]
        lists.sort(key=lambda each: len(each.documents))  # rare terms come first
        blocks = [range(first, min(first + _BLOCK, len(self))) for first in range(0, len(self), _BLOCK)]
        edges = np.array([*(block.start for block in blocks), len(self)], dtype=np.int32)
        cuts = [np.searchsorted(each.documents, edges).tolist() for each in lists]
        documents, scores, lower = np.empty(0, dtype=np.int64), np.empty(0), 0.0
        for number, block in enumerate(blocks):
            parts = [each.part(cut[number], cut[number + 1]) for each, cut in zip(lists, cuts, strict=True)]
            seen, found = _best(parts, block, limit, lower)
            documents, scores = np.concatenate([documents, seen]), np.concatenate([scores, found])
            if len(scores) > limit:
                lower = _threshold(scores, limit)
                documents, scores = documents[scores >= lower], scores[scores >= lower]
        return documents, scores

    def _postings(self, term: int, times: int) -> _Postings:
        start, stop = (int(edge) for edge in self._arrays["starts"][term : term + 2])
        documents, codes = self._arrays["documents"][start:stop], self._arrays["codes"][start:stop]
        return _Postings(documents, codes, self._arrays["weights"], times * _idf(len(self), stop - start), stop - start)


class _Postings(NamedTuple):
    """Documents that hold a term, ascending, their weights, what it adds to a score at most, and in how many it is."""

    documents: NDArray[np.int32]
    codes: NDArray[Any]
    weights: NDArray[np.float64]
    most: float
    frequency: int

    def part(self, start: int, stop: int) -> _Postings:
        """Return what lies between two places."""
        return self._replace(documents=self.documents[start:stop], codes=self.codes[start:stop])

    def added(self, places: Any) -> NDArray[np.float64]:
        """Return what the term adds to the scores of the documents at some places."""
        return self.most * self.weights[self.codes[places]]


def _best(
    parts: Sequence[_Postings], block: range, limit: int, lower: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return documents of a block, and their scores: all that can be among the best `limit`; `parts` lie in the block.

    `lower` is a score that `limit` documents have. Once what the remaining terms could add lies below it, no new
    document can enter, and only those that can still be among the best are looked up in the longer lists.
    """
    total = np.zeros(len(block))
    remaining = sum(part.most for part in parts)  # what the terms that are left can add
    seen: NDArray[np.int64] | None = None  # the only ones that can still be among the best
    for part in parts:
        if seen is None and lower > remaining:
            seen = np.flatnonzero(total >= lower - remaining)
        remaining = max(0.0, remaining - part.most)
        if not len(part.documents):
            continue
        if seen is None:
            local = part.documents - block.start
            total[local] += part.added(slice(None))
            if part.frequency <= _LONG:
                lower = max(lower, _threshold(total[local], limit))
            continue
        wanted = (seen + block.start).astype(np.int32)
        places = np.minimum(np.searchsorted(part.documents, wanted), len(part.documents) - 1)
        found = part.documents[places] == wanted
        total[seen[found]] += part.added(places[found])
        lower = max(lower, _threshold(total[seen], limit))
        seen = seen[total[seen] + remaining >= lower]
    if seen is None:
        seen = np.flatnonzero(total >= lower if lower > 0.0 else total)
    return seen + block.start, total[seen]


def mapped(folder: Path, name: str) -> NDArray[Any]:
    """Return an array of a folder, memory-mapped and read-only."""
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))  # numpy's own class for it is slow to index


def _threshold(scores: NDArray[np.float64], limit: int) -> float:
    """Return the limit-th best score, less what float32 may round away, or 0 where there are fewer."""
    if len(scores) < limit:
        return 0.0
    return float(np.partition(scores, len(scores) - limit)[len(scores) - limit]) * (1 - 1e-6)


def _idf(documents: int, frequency: int) -> float:
    return float(np.log(1 + (documents - frequency + 0.5) / (frequency + 0.5)))


def stored_length(length: int) -> int:
    """Return a document length as Lucene's one byte keeps it: exact below 40, then with four leading bits above 24."""
    if length < _EXACT_BELOW:
        return length
    over = length - 24
    shift = over.bit_length() - 4
    return 24 + (over >> shift << shift)


def build(products: Iterable[Product]) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """Return the arrays of an index and the number of each term; a product without terms is not counted.

    `asins` is sorted and numbers the documents; the postings of term t are `documents[starts[t]:starts[t + 1]]`,
    ascending, and as many `codes`, places in the table `weights` of tf / (tf + norm).
    """
    numbers: dict[str, int] = {}
    asins: list[bytes] = []
    lengths = array("l")
    terms, documents, frequencies = array("l"), array("l"), array("l")
    for product in products:
        found = Counter(analyze(search_text(product)))
        if not found:
            continue
        for term, frequency in found.items():
            terms.append(numbers.setdefault(term, len(numbers)))
            documents.append(len(asins))
            frequencies.append(frequency)
        asins.append(product.asin.encode())
        lengths.append(sum(found.values()))
    if not asins:
        return _empty(), {}
    order = np.argsort(np.array(asins), kind="stable")
    rank = np.empty(len(asins), dtype=np.int32)
    rank[order] = np.arange(len(asins), dtype=np.int32)
    term, document = _array(terms), rank[_array(documents)]
    length = _array(lengths)
    kept, inverse = np.unique(length, return_inverse=True)
    stored = np.array([stored_length(int(n)) for n in kept])[inverse]
    pairs, codes = np.unique(_array(frequencies) * (stored.max() + 1) + stored[_array(documents)], return_inverse=True)
    frequency, size = np.divmod(pairs, stored.max() + 1)
    place = np.lexsort((document, term))
    starts = np.zeros(len(numbers) + 1, dtype=np.int64)
    np.cumsum(np.bincount(term, minlength=len(numbers)), out=starts[1:])
    arrays = {
        "asins": np.array(asins)[order],
        "starts": starts,
        "documents": document[place],
        "codes": codes[place].astype(np.uint16 if len(pairs) <= 1 << 16 else np.uint32),
        "weights": frequency / (frequency + K1 * (1 - B + B * size / length.mean())),
    }
    return arrays, numbers


def _array(values: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(values, dtype=np.int64) if values else np.empty(0, dtype=np.int64)


def _empty() -> dict[str, NDArray[Any]]:
    return {
        "asins": np.empty(0, dtype="S10"),
        "starts": np.zeros(1, dtype=np.int64),
        "documents": np.empty(0, dtype=np.int32),
        "codes": np.empty(0, dtype=np.uint16),
        "weights": np.empty(0, dtype=np.float64),
    }
