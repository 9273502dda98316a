"""What the update does otherwise on CUDA: attention for rows of different lengths, bf16 products with fp32 logits."""

from __future__ import annotations

import pytest
import torch

from envrl.models import attention
from envrl.models.rows import runs_as_tree
from envrl.models.scores import score_tokens
from envrl.types import IntArray
from test_scores import inputs, network
from test_states import FAMILIES, forked, gradients, padded_layout, rows_of, small, valid

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize(
    ("precision", "way", "near"), [("bf16", "_varlen", (0.05, 0.1)), ("fp32", "_rectangle", (1e-4, 1e-3))]
)
@pytest.mark.parametrize("rows", [rows_of(), forked()], ids=["own", "forked"])
@pytest.mark.parametrize("kind", ["qwen2", "llama", "lfm2"])
def test_rows_as_a_tree_are_near_padded_rows(
    kind: str,
    rows: list[IntArray],
    precision: str,
    way: str,
    near: tuple[float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, called = small(kind, FAMILIES[kind]).cuda(), []
    own = getattr(attention, way)
    monkeypatch.setattr(attention, way, lambda *arguments: called.append(1) or own(*arguments))
    torch.set_default_device("cuda")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bf16"):
            assert runs_as_tree(model)
            called.clear()
            ours, our_gradients = valid(model, rows), gradients(model, rows, checkpointing=True)
            assert len(called) >= 3, "in a layer, forward, and again in the backward pass"
            padded_layout(monkeypatch)
            theirs, their_gradients = valid(model, rows), gradients(model, rows)
    finally:
        torch.set_default_device(None)
    assert float((ours - theirs).abs().max()) < near[0] * float(theirs.abs().max())
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        assert mine.dtype == torch.float32
        assert float((mine - other).norm()) < near[1] * float(other.norm()) + 1e-3


def test_bf16_products_with_the_output_matrix_give_fp32_logits() -> None:
    model = network(tied=False).cuda()
    head = model.get_output_embeddings().weight
    found = []
    for bf16 in (False, True):
        states, targets = inputs()
        states = states.detach().cuda().requires_grad_()
        scores = score_tokens(model, states, targets.cuda(), bf16=bf16)
        (scores.logprobs.sum() + 0.1 * scores.entropies.sum()).backward()
        assert scores.logprobs.dtype == states.grad.dtype == head.grad.dtype == torch.float32
        found.append([scores.logprobs.detach(), states.grad, head.grad.clone()])
        model.zero_grad(set_to_none=True)
    for exact, rounded in zip(*found, strict=True):
        assert 0.0 < float((exact - rounded).norm()) < 0.02 * float(exact.norm())
