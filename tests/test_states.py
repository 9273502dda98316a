"""Hidden states of whole rows: as a tree as padded, layers run again as once, and what the graph holds meanwhile."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from envrl.errors import UserError
from envrl.models import attention
from envrl.models import rows as module
from envrl.models.rows import runs_as_tree, states_of_rows, token_wise_parts
from envrl.models.tree import tree_of
from envrl.samples.packing import pack
from envrl.types import IntArray, Row

LENGTHS = (23, 17, 17, 17, 9, 2, 1)
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 100},
    "phi3": {"pad_token_id": 0},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
}
MIXED: dict[str, dict[str, Any]] = {
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
}


def small(kind: str, settings: dict[str, Any], layers: int = 2) -> PreTrainedModel:
    common = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        kind, **common, intermediate_size=48, max_position_embeddings=128, initializer_range=0.3, **settings
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def rows_of(lengths: tuple[int, ...] = LENGTHS) -> list[IntArray]:
    generator = np.random.default_rng(1)
    return [generator.integers(96, size=length, dtype=np.int32) for length in lengths]


def forked() -> list[IntArray]:
    """Return rows that begin alike: behind 9 tokens and behind 14, whole ones twice, a beginning, one by itself."""
    generator = np.random.default_rng(2)
    trunk, *ends = (generator.integers(96, size=size, dtype=np.int32) for size in (14, 80, 5, 3, 3))
    rows = [np.concatenate([trunk, end]) for end in ends[:2]] + [np.concatenate([trunk[:9], ends[2]])]
    return [ends[3], rows[0], rows[1], trunk[:11], rows[2], rows[1]]


FORKED_NODES = 14 + 80 + 5 + 3 + 3


def valid(network: PreTrainedModel, rows: list[IntArray], **settings: Any) -> Tensor:
    """Return the states (tokens, width) of the rows' own tokens, row by row."""
    found = states_of_rows(network, rows, 0, **settings)
    places = [(row, token) for row, ids in enumerate(rows) for token in range(len(ids))]
    return found.at(torch.tensor([row for row, _ in places]), torch.tensor([token for _, token in places]))


def gradients(network: PreTrainedModel, rows: list[IntArray], **settings: Any) -> list[Tensor]:
    states = valid(network, rows, **settings)
    (states * torch.linspace(-1.0, 1.0, states.numel()).reshape(states.shape)).sum().backward()
    found = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad(set_to_none=True)
    return found


def padded_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "runs_as_tree", lambda model: False)


@pytest.mark.parametrize("weights", ["kept", "made again"])
@pytest.mark.parametrize(
    ("rows", "nodes"), [(rows_of(), sum(LENGTHS)), (forked(), FORKED_NODES)], ids=["own", "forked"]
)
@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_as_a_tree_have_the_states_and_gradients_of_padded_rows(
    kind: str, rows: list[IntArray], nodes: int, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small(kind, FAMILIES[kind])
    assert runs_as_tree(network)
    if weights == "made again":
        monkeypatch.setattr(attention, "_KEPT", 0)
    assert states_of_rows(network, rows, 0).states.shape == (nodes, 32)
    ours, our_gradients = valid(network, rows).detach(), gradients(network, rows)
    padded_layout(monkeypatch)
    assert states_of_rows(network, rows, 0).states.shape == (len(rows) * max(map(len, rows)), 32)
    theirs, their_gradients = valid(network, rows).detach(), gradients(network, rows)
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())
    largest = max(float(each.abs().max()) for each in their_gradients)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        assert float((mine - other).abs().max()) < 1e-5 * largest
    alone = torch.cat([valid(network, [row]) for row in rows])
    assert float((alone - theirs).abs().max()) < 1e-5 * float(theirs.abs().max()), "each row is seen by itself"


@pytest.mark.parametrize("kind", MIXED)
def test_layers_that_mix_tokens_otherwise_keep_the_padded_layout(kind: str) -> None:
    network = small(kind, MIXED[kind])
    assert not runs_as_tree(network)
    assert states_of_rows(network, rows_of(), 0).states.shape == (len(LENGTHS) * max(LENGTHS), 32)


class NothingIsFuture(attention._Scores):
    def __init__(self, query: Tensor, group: int) -> None:
        super().__init__(query, group)
        self._future.zero_()


class TooLarge(attention._Scores):
    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        return super().__call__(1.5 * query, key)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_tree_may_differ_by_a_fifth_of_what_it_may_and_a_faulty_one_is_not_run(
    kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores half as large again do not show beyond bf16's rounding in every family; a future that is seen does."""
    most, faults = module.most_roundings, [NothingIsFuture, TooLarge]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        with monkeypatch.context() as patch:
            patch.setattr(module, "most_roundings", lambda model: most(model) / 5)
            assert runs_as_tree(small(kind, FAMILIES[kind]))
        for wrong in faults[: 1 if precision == "bf16" else 2]:
            with monkeypatch.context() as patch:
                patch.setattr(attention, "_Scores", wrong)
                assert not runs_as_tree(small(kind, FAMILIES[kind])), wrong


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_real_model_runs_as_a_tree(precision: str, smollm2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()
    most = module.most_roundings
    monkeypatch.setattr(module, "most_roundings", lambda model: most(model) / 5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        assert runs_as_tree(network)
        monkeypatch.setattr(attention, "_Scores", NothingIsFuture)
        assert not module._agrees(network)


def test_running_out_of_memory_is_no_reason_for_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    network = small("llama", FAMILIES["llama"])
    with monkeypatch.context() as patch:
        patch.setattr(module, "_as_tree", full)
        with pytest.raises(torch.OutOfMemoryError):
            runs_as_tree(network)
    assert runs_as_tree(network)


def test_rows_longer_than_a_window_keep_the_padded_layout() -> None:
    network = small("mistral", {"num_key_value_heads": 2, "sliding_window": 20})
    assert states_of_rows(network, rows_of((20, 5)), 0).states.shape == (25, 32)
    assert states_of_rows(network, rows_of((21, 5)), 0).states.shape == (42, 32)


def test_the_networks_own_attention_is_back_afterwards() -> None:
    network = small("qwen2", FAMILIES["qwen2"])
    own = network.config._attn_implementation
    for checkpointing in (False, True):
        gradients(network, rows_of(), checkpointing=checkpointing)
        assert network.config._attn_implementation == own
    assert all("forward" not in vars(layer) for layer in network.modules())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_last_layer_is_run_for_the_tokens_that_are_asked_for(kind: str, checkpointing: bool) -> None:
    """Their states and all gradients are the same; its feed-forward part sees no other token."""
    network = small(kind, FAMILIES[kind])
    assert runs_as_tree(network)
    assert len(token_wise_parts(network)) == (2 if kind == "phi3" else 3)
    rows, asked = forked(), [np.array(places) for places in ([2], [13, 50], [7, 18], [3], [11], [18])]
    row = torch.tensor(np.repeat(np.arange(len(rows)), list(map(len, asked))))
    token = torch.tensor(np.concatenate(asked))
    found, seen = [], []
    product = next(token_wise_parts(network)[0].children())
    with product.register_forward_hook(lambda part, given, result: seen.append(given[0].shape[1])):
        for chosen in (None, asked):
            states = states_of_rows(network, rows, 0, asked=chosen, checkpointing=checkpointing).at(row, token)
            states.square().sum().backward()
            found.append([states.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
            network.zero_grad(set_to_none=True)
    assert set(seen) == {FORKED_NODES, 7}
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*found, strict=True))
    assert all("forward" not in vars(layer) for layer in network.modules())


def test_a_mistake_in_a_branch_would_show() -> None:
    """Two rows of one trunk get the same states there and others behind it; a changed trunk changes both."""
    network = small("llama", FAMILIES["llama"])
    _, long, short, *_ = forked()
    states = states_of_rows(network, [long, short], 0)
    row = torch.zeros(14, dtype=torch.long)
    assert torch.equal(states.at(row, torch.arange(14)), states.at(row + 1, torch.arange(14)))
    assert not torch.equal(states.at(row[:1], torch.tensor([14])), states.at(row[:1] + 1, torch.tensor([14])))
    other = states_of_rows(network, [long, np.concatenate([short[:3], short[2:3], short[4:]])], 0)
    assert not torch.allclose(states.at(row[:1] + 1, torch.tensor([18])), other.at(row[:1] + 1, torch.tensor([18])))


@pytest.mark.parametrize("keep", [0, 1 << 30])
def test_attention_in_a_tree_has_the_derivatives_of_its_formula(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By finite differences in double precision; blocks of 4 tokens, so that branches begin and end inside them."""
    monkeypatch.setattr(attention, "_KEPT", keep)
    monkeypatch.setattr(attention, "_BLOCK", 4)
    ids = [np.array(row, dtype=np.int32) for row in ([1, 2, 3, 4, 5, 6], [1, 2, 3, 9], [1, 2, 3, 4, 5, 7, 8], [1, 2])]
    rows = attention.LaidRows.on(torch.device("cpu"), tree_of(ids))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 9, 3, dtype=torch.float64, generator=generator).requires_grad_() for heads in (4, 2, 2)
    )

    def attend(*given: Tensor) -> Tensor:
        return ALL_ATTENTION_FUNCTIONS[attention.TREE](network, *given, None, rows=rows, scaling=0.7)[0]

    network = torch.nn.Identity()
    assert torch.autograd.gradcheck(attend, (query, key, value))


@pytest.mark.parametrize("rows", [rows_of(), forked()], ids=["own", "forked"])
@pytest.mark.parametrize("kind", ["qwen2", "lfm2"])
def test_attention_in_whole_rows_is_that_of_the_branches(
    kind: str, rows: list[IntArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CUDA device runs in full precision, run here."""
    network = small(kind, FAMILIES[kind])
    ours, our_gradients = valid(network, rows), gradients(network, rows)

    def apply(query: Tensor, key: Tensor, value: Tensor, tree: Any) -> Tensor:
        laid = attention.LaidRows.on(query.device, tree)
        flat = query.unflatten(1, (key.shape[1], -1)).transpose(1, 2).flatten(0, 1)[None]
        found = attention._by_rows(flat, key[None], value[None], laid, 1.0)
        return found.unflatten(1, (len(key), -1)).transpose(0, 1).flatten(1, 2)

    monkeypatch.setattr(attention._Branches, "apply", apply)
    theirs, their_gradients = valid(network, rows), gradients(network, rows)
    assert not torch.equal(ours, theirs)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(our_gradients, their_gradients, strict=True))


def test_padding_at_most_doubles_rows_that_a_device_attends_to_whole() -> None:
    """Rows of a micro-batch that share much are of any length: one long row must not widen hundreds of short ones."""
    paths = [torch.arange(length) for length in (5, 900, 30, 7, 1, 31, 4, 2, *[60] * 300)]
    parts = attention._of_like_length(paths)
    assert [len(part) for part in parts] == [1, 302, 3, 2]
    assert sorted(len(path) for part in parts for path in part) == sorted(map(len, paths))
    assert sum(len(part) * len(part[0]) for part in parts) <= 2 * sum(map(len, paths))


def test_weights_of_attention_are_not_kept_where_no_gradient_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs of an old policy, or a reference: of all the blocks of a layer one alone is there at a time."""
    network, product, made = small("qwen2", FAMILIES["qwen2"]), torch.bmm, []

    def watched(one: Tensor, other: Tensor, **rest: Any) -> Tensor:
        if not rest:  # of weights and values, not of scores
            assert all(earlier() is None for earlier in made)
            made.append(weakref.ref(one))
        return product(one, other, **rest)

    assert runs_as_tree(network)
    monkeypatch.setattr(torch, "bmm", watched)
    with torch.no_grad():
        states_of_rows(network, rows_of(), 0)
    assert len(made) == 2 * len(LENGTHS)


def test_micro_batches_count_padding_only_where_there_is_some() -> None:
    rows = [Row(ids, (), str(number)) for number, ids in enumerate(rows_of())]
    padded = [[len(row.token_ids) for row in batch] for batch in pack(rows, 51)]
    assert padded == [[23, 17], [17, 17, 9], [2, 1]]
    found = pack(rows, 51, padded=False)
    assert [sum(len(row.token_ids) for row in batch) for batch in found] == [34, 50, 2]
    assert [len(batch) for batch in pack(rows, 1, padded=False)] == [1] * 7


def test_micro_batches_count_what_rows_begin_with_once() -> None:
    rows = [Row(ids, (), str(number)) for number, ids in enumerate(forked())]
    (batch,) = pack(rows, FORKED_NODES, padded=False)
    assert len(tree_of([row.token_ids for row in batch]).ids) == FORKED_NODES
    assert sum(len(row.token_ids) for row in rows) == 158
    assert len(pack(rows, FORKED_NODES - 1, padded=False)) == 2
    same = [rows[1]] * 20  # of 94 tokens each, which are run once
    assert [len(batch) for batch in pack(same, 94, padded=False)] == [8, 8, 4]


# --- activation checkpointing ----------------------------------------------------------------------------------------


def held(run: Callable[[], Any]) -> int:
    """Return how many bytes a forward pass leaves for the backward pass, parameters apart, each storage once."""
    kept: dict[int, Tensor] = {}

    def remember(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        result = run()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["qwen2", "lfm2", "gpt2"])
def test_layers_run_again_give_the_same_gradients_bit_for_bit(kind: str, precision: str) -> None:
    """GPT-2's dropout of 0.1 would show if the network were put into training mode."""
    network = small(kind, {**FAMILIES, **MIXED}.get(kind, {}))
    rows = rows_of()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        once, again = (gradients(network, rows, checkpointing=choice) for choice in (False, True))
    assert len(once) == len(again) > 5
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not any(layer.training for layer in network.modules())


@pytest.mark.parametrize("kind", ["qwen2", "lfm2"])
def test_layers_run_again_leave_little_for_the_backward_pass(kind: str) -> None:
    """A layer then keeps what enters it: 32 numbers a token, where it kept more than ten times that."""
    settings = {**FAMILIES, **MIXED}[kind]
    if kind == "lfm2":
        settings = settings | {"layer_types": ["conv", *["full_attention"] * 5]}
    network = small(kind, settings, layers=6)
    rows = rows_of((24, 24, 24, 24))
    full = held(lambda: states_of_rows(network, rows, 0))
    least = held(lambda: states_of_rows(network, rows, 0, checkpointing=True))
    inputs = 6 * 96 * 32 * 4
    assert least < full / 5
    assert inputs <= least < inputs + 15 * 96 * 32 * 4, "and around the layers: embedding, last norm, positions"


def test_a_model_without_such_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small("qwen2", FAMILIES["qwen2"])
    monkeypatch.setattr(module, "GradientCheckpointingLayer", torch.nn.Bilinear)
    with pytest.raises(UserError, match=r"'qwen2' have no layers that can be run again; set train\.checkpointing = f"):
        states_of_rows(network, rows_of(), 0, checkpointing=True)
