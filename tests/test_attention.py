"""Attention in a tree of rows against each row by itself in float64: values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envrl.models import attention
from envrl.models.attention import LaidRows, _tree_attention
from envrl.models.tree import tree_of

ROWS = [np.arange(210), np.concatenate([np.arange(65), [400, 401]]), np.arange(300, 333)]
"""Rows that begin alike, of more and of less than a block of tokens, and one that is alone."""


def alone(query: Tensor, key: Tensor, value: Tensor, rows: LaidRows) -> Tensor:
    """Return what torch computes for each row by itself, put where the row's nodes are (nodes, heads, size)."""
    found = query.new_zeros(query.shape[2], query.shape[1], query.shape[3])
    for branch in rows.tree.branches:
        path = torch.from_numpy(branch.path)
        q, k, v = (each[:, :, path] for each in (query, key, value))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
        found = found.index_copy(0, path[branch.shared :], seen[branch.shared :])
    return found


@pytest.mark.parametrize("scores", [attention._SCORES, 1], ids=["heads together", "one head at a time"])
@pytest.mark.parametrize("kept", [attention._KEPT, 0], ids=["weights kept", "weights made again"])
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 5e-3)], ids=str
)
def test_values_and_gradients_are_those_of_each_row_alone(
    dtype: torch.dtype, most: float, kept: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16 as far off as a result that is rounded to 8 bits once or twice, though 210 tokens are summed over."""
    monkeypatch.setattr(attention, "_KEPT", kept)
    monkeypatch.setattr(attention, "_SCORES", scores)
    rows = LaidRows.on(torch.device("cpu"), tree_of([row.astype(np.int32) for row in ROWS]))
    generator = torch.Generator().manual_seed(0)
    nodes, size = len(rows.tree.ids), 16
    query, key, value = (torch.randn(1, heads, nodes, size, generator=generator).to(dtype) for heads in (6, 2, 2))
    inputs = (query, key, value)
    above = torch.randn(nodes, 6, size, generator=generator).to(dtype)
    exact = [each.double().requires_grad_() for each in inputs]
    expected = alone(exact[0], exact[1], exact[2], rows)
    found, _ = _tree_attention(
        nn.Identity(), query.requires_grad_(), key.requires_grad_(), value.requires_grad_(), None, rows=rows
    )
    assert found.dtype == dtype
    gradients = torch.autograd.grad(found[0], inputs, above)
    others = torch.autograd.grad(expected, exact, above.double())
    for one, other in [(found[0].detach(), expected.detach()), *zip(gradients, others, strict=True)]:
        assert float((one.double() - other).norm() / other.norm()) < most
