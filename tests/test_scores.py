"""Scores of tokens: in chunks as at once, against torch's own loss, and never all logits of a large vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from envrl.models import scores
from envrl.models.scores import logits_in_chunks, score_tokens
from envrl.samples.rows import ragged
from envrl.types import Ragged

VOCABULARY, WIDTH, TOKENS = 600, 16, 37


def network(tied: bool = True, bias: bool = False) -> PreTrainedModel:
    shape = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(shape).eval()
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(VOCABULARY))
    return model


def restrictions(kind: str, targets: Tensor) -> Ragged | None:
    """What each token was drawn from: anything, some ids (its own among them), or either in turn."""
    if kind == "free":
        return None
    generator = np.random.default_rng(3)
    lists: list[list[int] | None] = []
    for place, target in enumerate(targets.tolist()):
        others = generator.choice(VOCABULARY, size=1 + place % 5, replace=False).tolist()
        lists.append(None if kind == "mixed" and place % 3 == 0 else sorted({target, *others}))
    return ragged(lists)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(TOKENS, WIDTH, generator=generator).requires_grad_()
    return states, torch.randint(VOCABULARY, (TOKENS,), generator=generator)


def scored(model: PreTrainedModel, allowed: str, temperature: float = 1.0) -> list[Tensor]:
    """Return log-probs, entropies, and the gradients of a loss of both."""
    states, targets = inputs()
    found = score_tokens(model, states, targets, restrictions(allowed, targets), temperature)
    weights = torch.linspace(-1.0, 2.0, TOKENS)
    ((weights * found.logprobs).sum() + 0.3 * (weights.flip(0) * found.entropies).sum()).backward()
    head = model.get_output_embeddings()
    gradients = [states.grad, *(parameter.grad for parameter in head.parameters())]
    model.zero_grad(set_to_none=True)
    return [found.logprobs.detach(), found.entropies.detach(), *gradients]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("allowed", ["free", "restricted", "mixed"])
def test_in_chunks_as_at_once(allowed: str, temperature: float, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(bias=bias)
    whole = scored(model, allowed, temperature)
    assert len(whole) == 4 + bias
    monkeypatch.setattr(scores, "KEPT", 0)
    for chunk in (5 * VOCABULARY, 1, 10**9):
        monkeypatch.setattr(scores, "CHUNK", chunk)
        for ours, theirs in zip(scored(model, allowed, temperature), whole, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=2e-6)


def test_the_loss_and_its_gradient_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(tied=False)
    states, targets = inputs()
    F.cross_entropy(model.get_output_embeddings()(states), targets, reduction="sum").backward()
    expected = [states.grad, model.get_output_embeddings().weight.grad]
    model.zero_grad(set_to_none=True)
    monkeypatch.setattr(scores, "KEPT", 0)
    monkeypatch.setattr(scores, "CHUNK", 4 * VOCABULARY)
    states, targets = inputs()
    found = score_tokens(model, states, targets).logprobs
    (-found.sum()).backward()
    for ours, theirs in zip([states.grad, model.get_output_embeddings().weight.grad], expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    probabilities = model.get_output_embeddings()(states).softmax(-1)
    entropies = score_tokens(model, states, targets).entropies
    assert torch.allclose(entropies, -(probabilities * probabilities.log()).sum(-1), atol=1e-5)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns, parameters' own apart."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *made])
        return result


@pytest.mark.parametrize("allowed", ["free", "restricted", "mixed"])
def test_no_tensor_is_larger_than_a_chunk_or_the_output_matrix(allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made forward and backward, gradients of the matrix (vocabulary × width) among it."""
    model = network()
    with Largest() as at_once:
        scored(model, allowed)
    assert at_once.elements == TOKENS * VOCABULARY
    monkeypatch.setattr(scores, "KEPT", 0)
    monkeypatch.setattr(scores, "CHUNK", 7 * VOCABULARY)
    with Largest() as in_chunks:
        scored(model, allowed)
    assert in_chunks.elements == VOCABULARY * WIDTH, "the matrix is 16 rows long, a chunk 7"
    monkeypatch.setattr(scores, "CHUNK", 20 * VOCABULARY)
    with Largest() as in_chunks:
        scored(model, allowed)
    assert in_chunks.elements == 20 * VOCABULARY


def test_nothing_of_the_logits_waits_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are few they are kept; else the output matrix is the largest thing that the graph holds."""
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    model = network()
    states, targets = inputs()
    for limit, most in ((scores.KEPT, TOKENS * VOCABULARY), (0, VOCABULARY * WIDTH)):
        monkeypatch.setattr(scores, "KEPT", limit)
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            score_tokens(model, states, targets)
        assert max(kept) == most


def test_a_frozen_output_matrix_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "KEPT", 0)
    model = network()
    model.requires_grad_(False)
    states, targets = inputs()
    score_tokens(model, states, targets).logprobs.sum().backward()
    assert states.grad is not None
    assert model.get_output_embeddings().weight.grad is None


def test_chunks_of_logits_are_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    states, _ = inputs()
    monkeypatch.setattr(scores, "CHUNK", 10 * VOCABULARY)
    found = list(logits_in_chunks(model, states))
    assert [len(logits) for _, logits in found] == [10, 10, 10, 7]
    assert torch.allclose(torch.cat([logits for _, logits in found]), model.get_output_embeddings()(states), atol=1e-5)
    assert torch.equal(torch.cat([states[part] for part, _ in found]), states)
