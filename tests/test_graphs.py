"""Passes of fixed shapes, as CUDA graphs need them, and what keeps and checks their recordings; all on the CPU.

`recordings.record` takes the place of a CUDA graph: it repeats recorded operations on the tensors that it saw.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

import recordings
from envrl.config.schema import ModelConfig
from envrl.models import graphs, slots
from envrl.models.devices import distinct_writes
from envrl.models.forward import chunk_states, vocabulary_size
from envrl.models.graphs import PassGraph, Recorded
from envrl.models.load import build_model
from envrl.models.slots import SlotCache
from envrl.rollout import own_sampler
from envrl.rollout import slot_sampler as module
from envrl.rollout.draw import choose
from envrl.rollout.meter import Meter
from envrl.rollout.slot_sampler import SlotSampler
from playing import sample
from test_families import FAMILIES, small
from test_slots import assert_same, play, qwen

NAMES = ["Llama 3", "Qwen2", "Qwen2 with windows", "Qwen3", "Gemma", "Gemma 2", "Gemma 3", "Phi-3 with a window"]
NAMES += ["LFM2"]
BLOCK = 8


def network_of(name: str) -> PreTrainedModel:
    if name == "LFM2":
        config = ModelConfig(hidden_size=32, layers=3, heads=2, vocabulary=330, context=400)
        return build_model(config, ["You arrive at drawer 1."] * 9, 1).network
    kind, settings = FAMILIES[name]
    return small(kind, **settings)


@pytest.fixture(scope="module", params=NAMES)
def network(request: pytest.FixtureRequest) -> PreTrainedModel:
    return network_of(request.param)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_BLOCK", BLOCK)


def integers(*numbers: int) -> Tensor:
    return torch.tensor(numbers)


class Twins:
    """Two caches that are told the same; tokens one a slot reach the second in passes of fixed shapes."""

    def __init__(self, network: PreTrainedModel, count: int) -> None:
        self.network, self.generator = network, torch.Generator().manual_seed(0)
        weight = next(network.parameters())
        self.device = weight.device
        self.plain, self.fixed = (SlotCache(network.config, count, weight.dtype, weight.device) for _ in "ab")
        self.passes = 0

    def ids(self, *shape: int) -> Tensor:
        return torch.randint(9, vocabulary_size(self.network), shape, generator=self.generator).to(self.device)

    @torch.no_grad()
    def chunk(self, counts: list[int], some: list[int] | None = None) -> None:
        ids, lengths = self.ids(len(counts), max(counts)), torch.tensor(counts, device=self.device)
        chosen = None if some is None else torch.tensor(some, device=self.device)
        for cache in (self.plain, self.fixed):
            chunk_states(self.network, cache, ids, lengths, chosen)

    @torch.no_grad()
    def write(self, *counts: int) -> None:
        """A token for each slot whose count is 1, as the sampler would feed it, and as a graph does."""
        ids, busy = self.ids(len(counts)), [slot for slot, count in enumerate(counts) if count]
        expected = chunk_states(self.network, self.plain, ids[busy, None], torch.ones(len(busy), dtype=torch.long),
                                None if len(busy) == len(counts) else torch.tensor(busy))  # fmt: skip
        self.fixed.reserve(int(self.fixed.lengths.max()) + 1)
        found = chunk_states(self.network, self.fixed, ids[:, None], torch.tensor(counts), None, self.fixed.capacity)
        assert torch.allclose(found[busy], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(self.plain.lengths, self.fixed.lengths)
        self.passes += 1

    def both(self, do: Callable[[SlotCache], Any]) -> None:
        do(self.plain)
        do(self.fixed)


def test_passes_of_fixed_shapes_give_what_others_give_whatever_happens_to_the_cache(network: PreTrainedModel) -> None:
    twins = Twins(network, 4)
    twins.chunk([5, 2, 6, 1])
    for counts in ((1, 1, 1, 1), (1, 0, 1, 0), (0, 0, 1, 0), (1, 1, 1, 0)):
        twins.write(*counts)
    assert twins.fixed.capacity == 2 * BLOCK, "the longest has passed the first block"
    twins.chunk([7, 3], [1, 3])
    twins.write(1, 0, 0, 1)
    twins.both(lambda cache: cache.copy(integers(1), integers(3)))
    twins.write(0, 1, 0, 1)
    if not twins.plain.has_states:
        twins.both(lambda cache: cache.cut(2, 4))
        twins.both(lambda cache: cache.copy(integers(1), integers(0), 3))
        twins.write(1, 1, 1, 0)
    twins.both(lambda cache: cache.clear(integers(2)))
    twins.write(1, 0, 1, 1)
    twins.both(lambda cache: cache.select(integers(3, 0, 2)))
    for _ in range(12):
        twins.write(1, 1, 1)
    assert twins.fixed.capacity >= 3 * BLOCK
    assert twins.passes == 20 - bool(twins.plain.has_states)


@torch.no_grad()
def test_a_pass_without_tokens_alters_nothing(network: PreTrainedModel) -> None:
    """Recording begins with such a pass."""
    cache = SlotCache(network.config, 3, torch.float32, torch.device("cpu"))
    chunk_states(network, cache, integers(11, 12, 13, 14, 15, 16).view(3, 2), integers(2, 1, 2))
    before = cache.moment()
    chunk_states(network, cache, integers(0, 0, 0)[:, None], integers(0, 0, 0), None, cache.capacity)
    assert all(torch.equal(*pair) for pair in zip(before, cache.moment(), strict=True))


class Placed(TorchDispatchMode):
    """Notes the devices of all tensors that operations take and return."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        self.devices |= {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}
        return result


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_pass_of_fixed_shapes_never_asks_its_device_for_a_number_or_sends_it_one(name: str) -> None:
    """On torch's `meta`, tensors have no numbers: asking for one, or a shape that depends on them, is an error."""
    network = network_of(name).to("meta")  # type: ignore[arg-type]
    numbers = torch.zeros(3, dtype=torch.long, device="meta")
    cache = SlotCache(network.config, 3, torch.float32, numbers.device)
    chunk_states(network, cache, numbers[:, None].expand(-1, 2), numbers, None, 2)
    with Placed() as placed:
        found = chunk_states(network, cache, numbers[:, None], numbers, None, cache.capacity)
    assert found.shape[:2] == (3, 1)
    assert placed.devices == {"meta"}
    with pytest.raises(RuntimeError, match="meta"):
        chunk_states(network, cache, numbers[:, None], numbers)


# --- what keeps the recordings ----------------------------------------------------------------------------------------


class Recorder:
    """Counts what is recorded; may break it."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda found: found, error: Exception | None = None) -> None:
        self.spoil, self.error, self.recorded = spoil, error, 0

    def __call__(self, run: graphs.Pass) -> graphs.Pass:
        self.recorded += 1
        if self.error is not None:
            raise self.error
        replay = recordings.record(run)
        return lambda: self.spoil(replay())


class Driver:
    """Feeds a cache through a `PassGraph`, as the sampler does, and a second one without."""

    def __init__(self, name: str, count: int, recorder: Callable[[graphs.Pass], graphs.Pass], **place: Any) -> None:
        self.network, self.count = network_of(name).to(**place), Recorded()  # type: ignore[arg-type]
        self.twins = Twins(self.network, count)
        self.graph = PassGraph(self.network, self.twins.fixed, recorder, self.count)
        self.twins.both(lambda cache: cache.reserve(2 * BLOCK))
        self.twins.chunk([3 + slot for slot in range(count)])

    @torch.no_grad()
    def write(self, *counts: int) -> float:
        """Return the largest difference between the states with recordings and without."""
        twins, busy = self.twins, [slot for slot, count in enumerate(counts) if count]
        ids, ones = twins.ids(len(busy)), torch.ones(len(busy), dtype=torch.long, device=twins.device)
        some = None if len(busy) == len(counts) else torch.tensor(busy, device=twins.device)

        def ordinary(cache: SlotCache) -> Tensor:
            return chunk_states(self.network, cache, ids[:, None], ones, some)

        room = int(twins.fixed.lengths.max()) + 1
        found = self.graph.run(busy, ids.cpu().numpy(), [1] * len(busy), room, lambda: ordinary(twins.fixed)).clone()
        expected = ordinary(twins.plain)
        assert found.shape == expected.shape
        assert torch.equal(twins.plain.lengths, twins.fixed.lengths)
        return float((found - expected).abs().max())

    def sums(self) -> tuple[int, int]:
        return self.count.graphs, self.count.passes

    def settle(self, *counts: int) -> None:
        before = self.count.passes
        for _ in range(graphs.SETTLED):
            assert self.write(*counts) < 1e-6
        assert self.count.passes == before, "ordinary passes"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "SETTLED", 2)


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", ["Qwen2", "Gemma 2", "LFM2"])
def test_recordings_go_on_until_the_cache_is_another(name: str) -> None:
    driver = Driver(name, 3, recorder := Recorder())
    with quiet():
        driver.settle(1, 1, 1)
        assert driver.sums() == (0, 0)
        assert driver.write(1, 1, 1) < 1e-6
        assert driver.sums() == (1, 0)
        assert max(driver.write(1, 0, 1), driver.write(0, 1, 0)) < 1e-5
        driver.twins.both(lambda cache: cache.clear(integers(1)))
        driver.twins.chunk([2], [1])
        driver.twins.both(lambda cache: cache.copy(integers(0), integers(2)))
        assert max(driver.write(1, 1, 1) for _ in range(3)) < 1e-5
        assert (recorder.recorded, driver.sums()) == (1, (1, 5)), "contents are others, the tensors the same"
        while driver.twins.fixed.capacity == 2 * BLOCK:
            assert driver.write(1, 1, 1) < 1e-5
        passes = driver.count.passes
        assert max(driver.write(1, 1, 1) for _ in range(4)) < 1e-5
        assert driver.sums() == (2, passes + 2), "one ordinary pass more, then a recording in the new room"
        driver.twins.both(lambda cache: cache.select(integers(2, 0)))
        driver.settle(1, 1)
        assert max(driver.write(1, 1) for _ in range(3)) < 1e-5
        assert driver.count.graphs == 3


def test_weights_that_change_in_place_are_seen() -> None:
    driver = Driver("Qwen2", 2, Recorder())
    driver.settle(1, 1)
    driver.write(1, 1)
    with torch.no_grad():
        for weight in driver.network.parameters():
            weight.mul_(1.1)
    assert driver.write(1, 1) < 1e-5
    assert driver.count.passes == 1


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (Recorder(lambda found: found * 1.01), "differ from an ordinary one's, by .*e.04 times their rounding"),
        (Recorder(lambda found: found * float("nan")), "differ"),
        (Recorder(error=RuntimeError("operation not permitted when stream is capturing")), "not permitted when"),
        (Recorder(error=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), "out of memory"),
    ],
    ids=["another", "no number", "refused", "memory"],
)
@pytest.mark.parametrize("name", ["Qwen2", "LFM2"])
def test_without_a_recording_that_agrees_passes_stay_ordinary_and_right(
    name: str, recorder: Recorder, reason: str
) -> None:
    recorder.recorded = 0
    driver = Driver(name, 2, recorder)
    driver.settle(1, 1)
    with pytest.warns(UserWarning, match=f"without a CUDA graph.*{reason}"):
        assert driver.write(1, 1) == 0.0
    with quiet():
        for counts in ((1, 0), (1, 1), (1, 1), (0, 1), (1, 1)):
            assert driver.write(*counts) == 0.0
    assert recorder.recorded == 1


def test_a_recording_that_forgets_to_count_is_found_out() -> None:
    """Its states are right at first; the next token would overwrite the last."""
    driver = Driver("Qwen2", 2, Recorder())
    lengths = driver.twins.fixed.lengths
    driver.graph._record = lambda run: (replay := recordings.record(run)) and (lambda: (replay(), lengths.sub_(1))[0])
    driver.settle(1, 1)
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        assert driver.write(1, 1) == 0.0
    assert driver.write(1, 1) == 0.0


def test_running_out_of_memory_in_an_ordinary_pass_is_not_hidden() -> None:
    driver = Driver("Qwen2", 2, Recorder(error=torch.OutOfMemoryError("CUDA out of memory")))
    driver.settle(1, 1)

    def ordinary() -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory, again")

    with pytest.warns(UserWarning, match="out of memory"), pytest.raises(torch.OutOfMemoryError, match="again"):
        driver.graph.run([0, 1], np.array([9, 9]), [1, 1], 9, ordinary)


def test_slots_at_rest_are_not_read_where_they_cost_more_than_a_recording_saves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver("Qwen2", 4, recorder := Recorder())
    two_slots = 2 * 2 * BLOCK * 2 * 2 * 8 * 4  # slots, positions, keys and values, their heads, a head's width, bytes
    monkeypatch.setattr(graphs, "IN_VAIN", two_slots)
    for _ in range(4):
        driver.write(1, 0, 0, 0)
    assert recorder.recorded == 0
    for _ in range(4):
        driver.write(1, 0, 1, 0)
    assert recorder.recorded == 1


# --- the sampler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "layout", "count"),
    [("qwen2", "concat", 0), ("lfm2", "steps", 5)],
)
def test_episodes_are_the_same_with_recordings(
    kind: str, layout: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = qwen() if kind == "qwen2" else small_preset()
    expected, _ = play(model, layout, count)
    monkeypatch.setattr(module, "recorder", lambda device: recordings.record)
    meters: list[Meter] = []
    monkeypatch.setattr(own_sampler, "Meter", lambda: meters.append(Meter()) or meters[-1])
    with quiet():
        found, clock = play(model, layout, count)
    assert_same(found, expected)
    assert clock.mismatches == 0
    assert 0 < meters[-1].recorded.graphs < meters[-1].recorded.passes < meters[-1].passes


def small_preset() -> Any:
    config = ModelConfig(hidden_size=32, layers=3, heads=2, vocabulary=330, context=400)
    return build_model(config, [f"You have {n} yards to go." for n in range(40)] * 3, 1)


def test_on_a_cpu_nothing_is_recorded() -> None:
    assert graphs.recorder(torch.device("cpu")) is None
    sampler = SlotSampler(qwen(), 2, 1.0, 12, {-1}, meter=(meter := Meter()))
    sample(sampler, [[9, 10], [9, 11, 12]], [None, None], np.arange(2, dtype=np.uint64), 0)
    assert meter.passes >= 12
    assert meter.recorded == Recorded()


def test_writes_at_places_all_different_need_no_order_and_what_a_run_asked_for_is_back_afterwards() -> None:
    def modes() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    before = modes()
    try:
        for asked in ((True, True), (True, False), (False, False)):
            torch.use_deterministic_algorithms(asked[0], warn_only=asked[1])
            with suppress(IndexError), distinct_writes(torch.device("cuda")):
                assert modes() == (False, False)
                raise IndexError
            assert modes() == asked
            with distinct_writes(torch.device("cpu")):
                assert modes() == asked
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def test_what_is_drawn_is_what_was_drawn_with_more_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    for choices in (5, 1033, 20_000):
        logprobs = (4 * torch.randn(40, choices, generator=generator)).log_softmax(-1)
        logprobs[:, choices - choices // 3 :] = -1e30
        numbers = np.random.default_rng(choices).random(40)
        kept = logprobs.clone()
        cumulative = logprobs.double().exp().cumsum(-1)
        targets = torch.from_numpy(numbers)[:, None] * cumulative[:, -1:]
        expected = torch.searchsorted(cumulative, targets, right=True)[:, 0].clamp(max=choices - choices // 3 - 1)
        assert torch.equal(choose(logprobs, numbers), expected)
        assert torch.equal(choose(logprobs.double(), numbers), expected)
        assert torch.equal(logprobs, kept)
