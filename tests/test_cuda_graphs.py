"""CUDA graphs of the sampler's passes on a real device: the same episodes with them as without."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from envrl.models import graphs, slots
from envrl.models.graphs import Recorded, recorder
from envrl.models.load import LanguageModel
from envrl.rollout import slot_sampler as module
from test_graphs import NAMES, Driver, small_preset
from test_slots import assert_same, play, qwen

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def soon_and_without_warnings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What does not agree, or cannot be recorded, warns."""
    monkeypatch.setattr(graphs, "SETTLED", 2)
    monkeypatch.setattr(slots, "_BLOCK", 16)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without a CUDA graph.*")
        yield


def on_cuda(model: LanguageModel) -> LanguageModel:
    model.network.to(DEVICE)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("layout", ["concat", "steps"])
@pytest.mark.parametrize("kind", ["qwen2", "lfm2"])
def test_episodes_are_those_of_ordinary_passes(
    kind: str, layout: str, deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`deterministic` as in a run, which asks torch for kernels that write in a fixed order."""
    model = on_cuda(qwen() if kind == "qwen2" else small_preset())
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        for count in (0, 5):
            found, clock = play(model, layout, count)
            with monkeypatch.context() as patch:
                patch.setattr(module, "recorder", lambda device: None)
                expected, plain = play(model, layout, count)
            assert_same(found, expected)
            assert plain.meter.recorded == Recorded()
            assert 0 < clock.meter.recorded.graphs < clock.meter.recorded.passes < clock.meter.passes
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_recorded_and_goes_on_with_slots_at_rest_in_a_larger_cache_and_with_fewer_slots(
    name: str, dtype: torch.dtype
) -> None:
    record = recorder(DEVICE)
    assert record is not None
    driver = Driver(name, 4, record, device=DEVICE, dtype=dtype)
    allowed = 1e-4 if dtype == torch.float32 else 0.5
    for number in range(40):
        assert driver.write(1, number % 2, 1, number % 3 > 0) < allowed
    driver.twins.both(lambda cache: cache.select(torch.tensor([2, 0], device=DEVICE)))
    for _ in range(6):
        assert driver.write(1, 1) < allowed
    assert driver.count.graphs >= 3
    assert driver.count.passes > 20


def test_a_pass_that_waits_for_the_device_is_refused_and_leaves_it_usable() -> None:
    record, numbers = recorder(DEVICE), torch.arange(3.0, device=DEVICE)
    assert record is not None
    with pytest.raises(RuntimeError):
        record(lambda: numbers[: int(numbers.sum())])
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.cuda.get_sync_debug_mode() == 0
    replay = record(lambda: 2 * numbers)
    numbers += 1
    assert replay().tolist() == [2.0, 4.0, 6.0]


def test_its_memory_is_given_back() -> None:
    record = recorder(DEVICE)
    assert record is not None
    held = []
    for _ in range(4):
        numbers = torch.ones(1 << 24, device=DEVICE)
        replay = record(lambda numbers=numbers: numbers + 1)
        assert float(replay()[0]) == 2.0
        del replay, numbers
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
    assert held[-1] <= held[0]
