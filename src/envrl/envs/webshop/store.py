"""A shop on disk: built once from its inputs, cached under their hash, memory-mapped and so shared by all workers."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import shutil
import tempfile
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import msgspec
import numpy as np

from envrl.envs.data import data_folder, how_to_get, size_and_sha256
from envrl.envs.webshop import catalogue
from envrl.envs.webshop.goals import Goal, draw_goals
from envrl.envs.webshop.index import Index, mapped
from envrl.envs.webshop.products import Oddities, Product, draw_price, read_products
from envrl.envs.webshop.shop import SEARCHED
from envrl.errors import RunError, UserError
from envrl.places import cache_folder

LAYOUT = 1
"""Rises when a stored shop of the same inputs looks otherwise."""
_T = TypeVar("_T")


class Records(Sequence[_T], Generic[_T]):
    """Records of one type laid end to end in a file, read when asked for."""

    def __init__(self, folder: Path, name: str, kind: Any) -> None:
        self._ends = mapped(folder, name)
        with open(folder / f"{name}.bin", "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if len(self._ends) else b""
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._at = lru_cache(maxsize=20_000)(self._read)

    @staticmethod
    def write(folder: Path, name: str, records: Iterable[Any]) -> None:
        """Write records for `Records(folder, name, …)`."""
        encode, ends, end = msgspec.msgpack.Encoder().encode, array("q"), 0
        with open(folder / f"{name}.bin", "wb") as file:
            for record in records:
                end += file.write(encode(record))
                ends.append(end)
        np.save(folder / f"{name}.npy", np.array(ends, dtype=np.int64))

    def _read(self, index: int) -> _T:
        start = int(self._ends[index - 1]) if index else 0
        return self._decode(self._bytes[start : int(self._ends[index])])

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> _T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[_T]: ...
    def __getitem__(self, index: int | slice) -> _T | Sequence[_T]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        return self._at(range(len(self))[index])


class StoredShop:
    """A shop that `build_shop` wrote to a folder; goals are named `<name>-<number>`."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.name = str(about["goals"])
        self.oddities = str(about["oddities"])
        self.fingerprint = str(about["fingerprint"])
        self.products: Sequence[Product] = Records(folder, "products", Product)
        self.goals: Sequence[Goal] = Records(folder, "goals", Goal)
        self._prices = mapped(folder, "prices")
        self._asins = mapped(folder, "sorted")
        self._places = mapped(folder, "places")
        self._place = lru_cache(maxsize=100_000)(self._find)
        self._search = lru_cache(maxsize=20_000)(self._searched)
        self.folder = folder

    def product(self, asin: str) -> Product | None:
        place = self._place(asin)
        return None if place is None else self.products[place]

    def price(self, asin: str) -> float:
        return float(self._prices[self._place(asin)])

    def search(self, query: str) -> Sequence[str]:
        return self._search(query)

    def _searched(self, query: str) -> tuple[str, ...]:
        return tuple(asin for asin, _ in self._index.search(query, SEARCHED))

    @cached_property
    def _index(self) -> Index:
        return Index.open(self.folder)

    def _find(self, asin: str) -> int | None:
        found = int(np.searchsorted(self._asins, asin.encode()))
        if found == len(self._asins) or self._asins[found] != asin.encode():
            return None
        return int(self._places[found])


def build_shop(
    folder: Path,
    records: Iterable[Mapping[str, Any]],
    attributes: Mapping[str, Mapping[str, Any]],
    human: Mapping[str, Sequence[Mapping[str, Any]]] | None,
    seed: int,
    fingerprint: str,
) -> None:
    """Write a shop into an empty folder, with human goals where given, else synthetic ones; `seed` draws prices."""
    oddities, generator = Oddities(), random.Random(seed)
    Records.write(folder, "products", read_products(records, attributes, oddities))
    products: Sequence[Product] = Records(folder, "products", Product)
    prices = {product.asin: draw_price(product, generator) for product in products}
    np.save(folder / "prices.npy", np.array(list(prices.values()), dtype=np.float64))
    names = np.array([asin.encode() for asin in prices] or [b""])[: len(prices)]
    order = np.argsort(names, kind="stable")
    np.save(folder / "sorted.npy", names[order])
    np.save(folder / "places.npy", order.astype(np.int32))
    Records.write(folder, "goals", draw_goals(products, prices, human, generator))
    Index.of(products).save(folder)
    about = {
        "goals": "synthetic" if human is None else "human",
        "oddities": str(oddities),
        "fingerprint": fingerprint,
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def generated_shop(count: int, seed: int, goals: str) -> StoredShop:
    """Return the shop of a generated catalogue, built where it is not cached yet."""
    key = _key_of({"generated": catalogue.VERSION, "products": count, "seed": seed, "goals": goals})

    def build(folder: Path) -> None:
        attributes: dict[str, Any] = {}
        human: dict[str, Any] = {}

        def records() -> Iterator[dict[str, Any]]:
            for record in catalogue.generate(count, seed):
                attributes[record.product["asin"]] = record.attributes
                if record.instructions:
                    human[record.product["asin"]] = record.instructions
                yield record.product

        build_shop(folder, records(), attributes, human if goals == "human" else None, seed, key)

    return cached_shop(key, build, count)


def stored_shop(data: str, count: int, seed: int, goals: str) -> StoredShop:
    """Return the shop of the original's files in a folder, built where it is not cached yet.

    `count` > 0 takes the first products only. Raises `UserError` for files that are missing or not what they should be.
    """
    folder = data_folder("webshop", data)
    products = _one_of(folder, ("items_shuffle.json", "items_shuffle_1000.json"), small_first=0 < count <= 1000)
    small = products.name.endswith("_1000.json")
    goals = goals or ("synthetic" if small else "human")
    extra = _one_of(folder, ("items_ins_v2.json", "items_ins_v2_1000.json"), small_first=small)
    human = _one_of(folder, ("items_human_ins.json", "items_human_ins_1000.json")) if goals == "human" else None
    inputs = {file.name: _sha256(file) for file in (products, extra, human) if file}
    key = _key_of({"inputs": inputs, "products": count, "seed": seed, "goals": goals})

    def build(into: Path) -> None:
        people = _read_json(human, dict) if human else None
        build_shop(into, _catalogue(products, count), _read_json(extra, dict), people, seed, key)

    return cached_shop(key, build, products.stat().st_size // 3000)


def _one_of(folder: Path, names: Sequence[str], *, small_first: bool = False) -> Path:
    for name in reversed(names) if small_first else names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"the data folder '{folder}' of the world 'webshop' holds no {' or '.join(names)}; {how_to_get('webshop')}"
    )


def _read_json(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is truncated or not what the original has: {error}; {how_to_get('webshop')}"
        ) from error


def _catalogue(path: Path, count: int) -> Iterator[Any]:
    """Yield the records of a catalogue file one by one; the file is mapped, since the whole one has 5.5 GB."""
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with the last record
        records = msgspec.json.decode(data, type=list[msgspec.Raw])
        for record in records[:count] if count else records:
            yield msgspec.json.decode(record)
    except (msgspec.MsgspecError, ValueError) as error:  # an empty file cannot be mapped: ValueError
        raise UserError(f"{path} is truncated or no list of products: {error}; {how_to_get('webshop')}") from error


def _key_of(inputs: Mapping[str, Any]) -> str:
    """Return a short hash of what a shop is made from."""
    text = json.dumps({"layout": LAYOUT, **inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached_shop(key: str, build: Callable[[Path], None], size: int) -> StoredShop:
    """Return the shop cached under a key; where there is none it is built aside and appears whole, by rename."""
    target = cache_folder("webshop") / key
    if not (target / "about.json").is_file():
        if size > 100_000:
            warnings.warn(f"building the search index of {size:,} products once, into {target}", stacklevel=2)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=f".{key[:8]}-", dir=target.parent))
        except OSError as error:
            raise UserError(
                f"the cache '{target.parent}' cannot be written ({error.strerror}); let $XDG_CACHE_HOME name another"
            ) from error
        try:
            build(aside)
            os.rename(aside, target)
        except OSError as error:
            if not (target / "about.json").is_file():  # else another process was quicker
                raise RunError(f"cannot write the search index to '{target}': {error.strerror}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    shop = _opened(target)
    if shop.oddities:
        warnings.warn(f"the product catalogue has records {shop.oddities}", stacklevel=2)
    return shop


@lru_cache(maxsize=8)
def _opened(folder: Path) -> StoredShop:
    """Return the shop in a folder; all worlds of this process share it."""
    return StoredShop(folder)


def _sha256(file: Path) -> str:
    """Return a file's SHA-256; that of a large one is kept in the cache beside its size and time."""
    about = file.stat()
    return _hashed(file, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=64)
def _hashed(file: Path, size: int, changed: int) -> str:
    if size < 1 << 26:
        return size_and_sha256(file)[1]
    name = hashlib.sha256(f"{file.resolve()} {size} {changed}".encode()).hexdigest()[:32]
    note = cache_folder("webshop") / "files" / name
    if note.is_file():
        return note.read_text()
    _, found = size_and_sha256(file)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(found)
    except OSError:  # it is only a shortcut
        pass
    return found
