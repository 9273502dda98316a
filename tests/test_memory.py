"""Memory that is predicted, against numbers worked by hand and against what passes really allocate."""

from __future__ import annotations

import resource
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from envrl.config.schema import ModelConfig
from envrl.costs.memory import (
    ATTENDED,
    LOGITS_CHUNK,
    TOGETHER,
    WIDE,
    Load,
    cache_bytes,
    cache_positions,
    footprint,
    layer_bytes,
    logits_bytes,
    pass_parts,
    saved_bytes,
    trainable,
)
from envrl.costs.shape import preset_shape, published_shape, shape_of
from envrl.engine.optimizer import adamw
from envrl.engine.update import LossSettings, accumulate
from envrl.errors import UserError
from envrl.models import attention, forward, scores
from envrl.models.load import LanguageModel
from envrl.models.runtime import give_back_memory, keep_freed_memory
from envrl.rollout.slot_sampler import SlotSampler
from envrl.types import LossTerm, Row
from playing import sample

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("Qwen2.5-3B", 3_085_938_688),
        ("models/qwen2.5-7b", 7_615_616_512),
    ],
)
def test_published_models_have_their_published_size(name: str, parameters: int) -> None:
    shape = published_shape(name)
    assert shape is not None
    assert shape.parameters == parameters


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        (LlamaConfig, {}),
        (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
        (MistralConfig, {}),
        (Qwen2Config, {"tie_word_embeddings": True}),
        (Qwen2Config, {}),
        (Qwen3Config, {"head_dim": 32}),
        (SmolLM3Config, {}),
        (GraniteConfig, {}),
        (Phi3Config, {}),
        (Gemma2Config, {"head_dim": 16}),
        (Gemma3TextConfig, {"head_dim": 16}),
        (Lfm2Config, {"layer_types": ["conv", "full_attention", "conv"]}),
        (Lfm2Config, {"layer_types": ["conv", "full_attention", "full_attention"], "block_auto_adjust_ff_dim": False}),
    ],
)
def test_parameters_are_those_that_transformers_makes(kind: type[PretrainedConfig], extra: dict[str, Any]) -> None:
    config = kind(**SMALL, vocab_size=320, **extra)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    counted = sum(parameter.numel() for parameter in network.parameters())
    assert shape_of(config.to_dict()).parameters == counted
    assert shape_of(config.to_diff_dict()).parameters == counted, "as config.json has it"


def test_the_preset_has_the_size_that_its_page_says() -> None:
    assert preset_shape(ModelConfig(vocabulary=1032)).parameters == 740_032


def test_a_configuration_without_a_shape_is_one_sentence() -> None:
    with pytest.raises(UserError, match="does not say what shape it has"):
        shape_of({"model_type": "llama", "hidden_size": 64})


def test_memory_that_a_tensor_leaves_is_taken_by_the_next_one() -> None:
    """64 MiB are 16,384 pages, and each one that the system has to clear is a page fault.

    In a process of its own: where memory lies depends on all that was there before.
    """
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")
    script = """
import resource, torch
from envrl.models.runtime import keep_freed_memory
keep_freed_memory()
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say what a process holds")
def test_memory_that_was_kept_is_given_back() -> None:
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")

    def held() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()

    torch.ones(1 << 26)
    kept = held()
    give_back_memory()
    assert kept - held() > 250 << 20


# --- by hand ---------------------------------------------------------------------------------------------------------

QWEN = shape_of(Qwen2Config(**SMALL, vocab_size=320).to_dict())
LOAD = Load(micro_batch=1000, scored=100, slots=8, positions=300, chunk=200, fed=1600, later=8)


def test_a_layer_keeps_what_is_counted_by_hand() -> None:
    """Width 64, inner 176, queries 64 wide, keys 32, 4 heads, rows as a tree: fp32, then autocast.

    A token that sees 100 has 132 weights a head on average, in blocks of 64; one that sees 257 has none.
    """
    norms, attention, feed_forward = 4 * (6 * 64 + 2), 4 * (64 + 32 + 32 + 2 * 64 + 4 * 132), 4 * 4 * 176
    assert layer_bytes(QWEN, bf16=False, sees=100)[0] == norms + attention + feed_forward == 1544 + 3136 + 2816
    assert layer_bytes(QWEN, bf16=False, sees=257)[0] == 1544 + 4 * 256 + 2816
    norms, attention, feed_forward = 4 * (4 * 64 + 2), 2 * (3 * 64 + 256 + 4 * 132), 2 * (2 * 64 + 4 * 176)
    assert layer_bytes(QWEN, bf16=True, sees=100)[0] == norms + attention + feed_forward == 1032 + 1952 + 1664
    on_cuda = layer_bytes(QWEN, bf16=True, cuda=True, sees=100)[0]
    assert on_cuda == 1032 + 2 * (3 * 64 + 2 * 64 + 2 * 32) + 1664, "q, k, v, the result"


def test_a_cache_grows_by_half_from_its_first_chunk() -> None:
    """200 tokens: 256 positions; for 300 it grows to 384: 8 slots × 384 × (3 + 1 layers) × 2 × 32 numbers."""
    assert cache_positions(LOAD) == 384
    assert cache_bytes(QWEN, LOAD) == 8 * 384 * 4 * 2 * 32 * 4
    assert cache_positions(replace(LOAD, positions=180)) == 256


def test_an_adapter_has_so_many_weights() -> None:
    """Rank 8 beside q (64 to 64), k and v (64 to 32), o, and three matrices of 64 and 176, in 3 layers."""
    assert trainable(QWEN, 8) == 3 * 8 * (128 + 96 + 96 + 128 + 3 * 240)
    assert trainable(QWEN, 0) == QWEN.parameters


def test_the_1_5b_model_by_hand() -> None:
    """Weights, gradients, moments and reference are 4, 4, 8 and 4 bytes a weight; 7 GB of keys and values at 2,560."""
    shape = published_shape("qwen2.5-1.5b")
    assert shape is not None
    load = Load(
        micro_batch=16384,
        scored=3277,
        slots=128,
        positions=2560,
        chunk=2048,
        fed=1 << 18,
        later=128,
        bf16=True,
        copies=1,
        cuda=True,
        sees=1280,
    )
    found = footprint(shape, load).phases
    assert found["update"]["weights"] == found["update"]["gradients"] == 4 * 1_543_714_304
    assert found["update"]["Adam's moments"] == 8 * 1_543_714_304
    assert found["update"]["a second model"] == 4 * 1_543_714_304
    assert found["rollout"]["keys and values"] == 128 * 3072 * 29 * 2 * 256 * 4
    assert "gradients" not in found["rollout"]
    assert found["update"]["bf16 copies"] == 2 * 28 * (2 * 1536 * (1536 + 256) + 3 * 1536 * 8960)
    layer = 4 * (4 * 1536 + 2) + 2 * (3 * 1536 + 2 * 1792) + 2 * (2 * 1536 + 4 * 8960)
    ends = 4 * 3073 + 8 + 2 * 4 * 128
    spared = 2 * (3 * 1536 + 4 * 8960 + 1536)  # of a token without a loss, in the last layer
    assert found["update"]["activations"] == 16384 * (28 * layer + ends) - (16384 - 3277) * spared
    checkpointed = saved_bytes(shape, replace(load, checkpointing=True))
    assert checkpointed == (16384 * (28 * 4 * 1536 + ends), 16384 * layer)


def test_logits_are_bounded_by_a_chunk() -> None:
    shape = published_shape("qwen2.5-1.5b")
    assert shape is not None
    assert LOGITS_CHUNK == scores.CHUNK
    assert LOGITS_CHUNK // 8 == scores.KEPT
    assert (ATTENDED, TOGETHER, WIDE) == (attention._KEPT, attention._BLOCK, forward._WIDE)
    few, many = (logits_bytes(shape, replace(LOAD, scored=scored)) for scored in (100, 1000))
    assert few == 100 * 151936 * 21
    assert many == 883 * 151936 * 33 + 4 * 151936 * 1536
    assert logits_bytes(shape, replace(LOAD, scored=1 << 20)) == many


# --- against what is allocated ---------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Counts the bytes of all tensors that come into being while it is on, and the most of them alive at once."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.held = [tensor.untyped_storage() for tensor in known]
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


class _Pad:
    pad = 0


def make_rows(count: int, length: int, scored: int) -> list[Row]:
    positions = np.arange(length - scored, length, dtype=np.int32)
    ones = np.ones(scored, dtype=np.float32)
    term = LossTerm("policy", positions, ones, float(scored), {"advantages": ones, "sampled_logprobs": -ones})
    ids = np.random.default_rng(0).integers(1, 250, (count, length)).astype(np.int32)
    return [Row(row, (term,), f"row {number}") for number, row in enumerate(ids)]


def network(kind: str, **shape: Any) -> LanguageModel:
    if kind == "lfm2":
        layers = ["conv", *["full_attention"] * (shape["num_hidden_layers"] - 1)]
        config: PretrainedConfig = Lfm2Config(**SMALL | shape, layer_types=layers, block_auto_adjust_ff_dim=False)
    else:
        config = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}[kind](
            **SMALL | {"head_dim": 32, "tie_word_embeddings": True} | shape
        )
    torch.set_num_threads(1)
    return LanguageModel(AutoModelForCausalLM.from_config(config), _Pad())  # type: ignore[arg-type]


CASES = {
    "activations": (
        {"num_hidden_layers": 4, "hidden_size": 128, "intermediate_size": 344, "vocab_size": 300},
        8,
        256,
        4,
    ),
    "wide feed-forward": ({"num_hidden_layers": 2, "intermediate_size": 1024, "vocab_size": 300}, 8, 128, 4),
    "logits": ({"num_hidden_layers": 2, "vocab_size": 20000}, 2, 64, 48),
    "embedding": ({"num_hidden_layers": 2, "vocab_size": 30000}, 2, 32, 2),
    "many layers": ({"num_hidden_layers": 12, "vocab_size": 2000}, 6, 100, 12),
}


@pytest.mark.parametrize(
    ("kind", "precision", "checkpointing"),
    [("qwen2", "fp32", True), ("qwen2", "bf16", False), ("qwen3", "fp32", False), ("lfm2", "bf16", True)],
)
@pytest.mark.parametrize("case", CASES)
def test_the_peak_of_an_update_is_the_predicted_one(case: str, kind: str, precision: str, checkpointing: bool) -> None:
    """Gradients and passes over two micro-batches, counted allocation by allocation: within 4 % of the prediction."""
    extra, rows, length, scored = CASES[case]
    model = network(kind, **extra)
    loss = LossSettings(
        {"policy": 1.0},
        knobs={"clip_low": 0.2, "clip_high": 0.2},
        precision=precision,
        micro_batch_tokens=rows * length,
        checkpointing=checkpointing,
    )
    batch = make_rows(2 * rows, length, scored)
    accumulate(model, batch[:1], loss)  # the first time a network is run it is tried whether rows can lie end to end
    model.network.zero_grad(set_to_none=True)
    with Allocations([*model.network.parameters(), *model.network.buffers()]) as allocated:
        accumulate(model, batch, loss)
    shape = shape_of(model.network.config.to_dict())
    load = replace(LOAD, micro_batch=rows * length, scored=rows * scored, sees=length // 2)
    load = replace(load, bf16=precision == "bf16", checkpointing=checkpointing)
    expected = 4 * shape.parameters + sum(pass_parts(shape, load).values())
    assert allocated.peak == pytest.approx(expected, rel=0.04)


def test_the_peak_of_an_optimiser_step_is_the_predicted_one() -> None:
    model = network("qwen2", vocab_size=2000)
    optimizer = adamw(model, 1e-3)
    for parameter in model.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    parameters = list(model.network.parameters())
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    with Allocations([*parameters, *grads, *optimizer.tensors().values()]) as allocated:
        optimizer.step()
    shape = shape_of(model.network.config.to_dict())
    assert allocated.peak == pytest.approx(footprint(shape, LOAD).phases["optimiser step"]["temporary"], rel=0.05)
    moments = sum(tensor.nbytes for tensor in optimizer.tensors().values() if tensor.ndim)
    assert moments == footprint(shape, LOAD).phases["optimiser step"]["Adam's moments"]


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("kind", ["qwen2", "lfm2"])
def test_the_peak_of_a_rollout_is_at_most_the_predicted_one(kind: str, steps: bool) -> None:
    """Slots fed prompts and tokens, then given to other episodes, whose prompts find the cache at its longest."""
    model = network(kind, vocab_size=500, num_hidden_layers=6)
    slots, prompt, response = 12, 180, 40
    sampler = SlotSampler(model, slots, 1.0, response, frozenset({499}))
    random = np.random.default_rng(0)
    keys = np.arange(slots, dtype=np.uint64)
    with Allocations([*model.network.parameters(), *model.network.buffers()]) as allocated:
        for turn in range(1 if steps else 4):
            length = prompt if turn == 0 else 60
            prompts = [random.integers(1, 400, length).tolist() for _ in range(slots)]
            sample(sampler, prompts, [None] * slots, keys, turn)
        positions = max(sampler.length(slot) for slot in range(slots))
        sampler.forget(range(slots))
        others = [random.integers(1, 400, prompt).tolist() for _ in range(slots)]
        sample(sampler, others, [None] * slots, keys, 0)
    shape = shape_of(model.network.config.to_dict())
    load = replace(
        LOAD, slots=slots, positions=positions, chunk=prompt, fed=slots * prompt, later=slots * (1 if steps else 61)
    )
    parts = footprint(shape, load).phases["rollout"]
    expected = parts["keys and values"] + parts["sampling"]
    assert 0.7 * expected < allocated.peak <= expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_on_cuda_is_near_the_predicted_one(precision: str, checkpointing: bool) -> None:
    """Two updates of a model of 100 million weights, by the allocator's own count: within 10 % of the prediction."""
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8, "vocab_size": 20000}
    model = network("qwen2", **shape, num_attention_heads=12, head_dim=64)
    model.network.to("cuda")
    optimizer = adamw(model, 1e-4)
    rows, length, scored = 16, 512, 64
    loss = LossSettings(
        {"policy": 1.0},
        knobs={"clip_low": 0.2, "clip_high": 0.2},
        precision=precision,
        micro_batch_tokens=rows * length,
        checkpointing=checkpointing,
    )
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        accumulate(model, make_rows(2 * rows, length, scored), loss)
        optimizer.step()
        optimizer.zero_grad()
    load = replace(LOAD, micro_batch=rows * length, scored=rows * scored, cuda=True)
    load = replace(load, bf16=precision == "bf16", checkpointing=checkpointing)
    found = footprint(shape_of(model.network.config.to_dict()), load)
    expected = max(found.total("update"), found.total("optimiser step"))
    assert torch.cuda.max_memory_allocated() == pytest.approx(expected, rel=0.1)
