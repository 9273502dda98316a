"""Causal attention in a tree of rows: each token attends to the tokens before it in its row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from envrl.models.tree import Branch, Tree

TREE = "envrl_tree"
"""The name of this attention in `transformers`."""

_BLOCK = 64
"""Tokens per block: larger blocks compute more masked scores, smaller ones make the products slow."""
_SCORES = 1 << 19
"""The most scores of a block that are computed at once, unless one head has more: two MiB in fp32."""
_KEPT = 16
"""Attention weights are kept for the backward pass if a token sees at most this many head widths of tokens on average.

They then take no more memory than a layer's other activations; otherwise they are computed again.
"""


@dataclass(frozen=True, slots=True)
class LaidRows:
    """A tree of rows on a device: `nodes` has the node of each token, row after row; `bounds` (rows + 1) splits it."""

    tree: Tree
    nodes: Tensor
    bounds: Tensor
    _before: dict[int, Tensor] = field(default_factory=dict)

    def before(self, distance: int) -> Tensor:
        """Return `Tree.before` on the device, cached since every layer needs the same."""
        if distance not in self._before:
            self._before[distance] = torch.from_numpy(self.tree.before(distance)).to(self.nodes.device)
        return self._before[distance]

    @classmethod
    def on(cls, device: torch.device, tree: Tree) -> LaidRows:
        nodes = torch.from_numpy(np.concatenate([branch.path for branch in tree.branches])).to(device)
        lengths = [len(branch.path) for branch in tree.branches]
        return cls(tree, nodes, torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device))


def _tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: LaidRows,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend causally inside each row; query (1, heads, nodes, size), key and value with as many heads or fewer.

    Raises `ValueError` if a layer needs more than that: the test of `runs_as_tree` would miss a cap on small scores.
    """
    if any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise ValueError("this layer's attention is not plain")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    device = query.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    query, key, value = (each.to(low) for each in (query, key, value))
    if device == "cuda":
        return _by_rows(query, key, value, rows, scale)[None], None
    heads, nodes, size = key.shape[1:]
    grouped = query[0].unflatten(0, (heads, -1)).transpose(1, 2) * scale
    flat = (each.flatten(1, -2).contiguous() for each in (grouped, key[0], value[0]))
    output = cast(Tensor, _Branches.apply(*flat, rows.tree))
    return output.unflatten(1, (nodes, -1)).transpose(0, 1).reshape(1, nodes, -1, size), None


ALL_ATTENTION_FUNCTIONS.register(TREE, _tree_attention)


def _by_rows(query: Tensor, key: Tensor, value: Tensor, rows: LaidRows, scale: float) -> Tensor:
    """Attend in each whole row, shared prefix included, with torch's kernels; return the result of each node.

    The backward pass computes it again: whole rows that share much have many times as many tokens as nodes.
    """
    attend = _varlen if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) else _rectangle
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    return cast(Tensor, again(attend, query, key, value, rows, scale))


def _varlen(query: Tensor, key: Tensor, value: Tensor, rows: LaidRows, scale: float) -> Tensor:
    """Attend with torch's kernel for rows of different lengths, which exists for CUDA in half precision only."""
    from torch.nn.attention.varlen import varlen_attn

    longest, groups = max(len(branch.path) for branch in rows.tree.branches), query.shape[1] // key.shape[1]
    # Repeating heads costs little here, and torch 2.11 needs it.
    q, k, v = (
        each[0].repeat_interleave(times, dim=0).transpose(0, 1)[rows.nodes]
        for each, times in ((query, 1), (key, groups), (value, groups))
    )
    output = varlen_attn(q, k, v, rows.bounds, rows.bounds, longest, longest, scale=scale, window_size=(-1, 0))
    return cast(Tensor, output)[_places(rows.nodes, query.shape[2])]


def _rectangle(query: Tensor, key: Tensor, value: Tensor, rows: LaidRows, scale: float) -> Tensor:
    """Attend in padded rows: few calls for a GPU, where branches would be thousands of small ones."""
    outputs, nodes = [], []
    for paths in _of_like_length([torch.from_numpy(branch.path) for branch in rows.tree.branches]):
        part = pad_sequence(paths, batch_first=True, padding_value=-1).to(query.device)
        q, k, v = (each[0][:, part].transpose(0, 1) for each in (query, key, value))
        grouped = q.shape[1] != k.shape[1]
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        outputs.append(seen.transpose(1, 2).flatten(0, 1))
        nodes.append(part.flatten())
    return torch.cat(outputs)[_places(torch.cat(nodes), query.shape[2])]


def _of_like_length(paths: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group rows so that each is at least half as long as the longest of its group: padding at most doubles them."""
    parts: list[list[Tensor]] = []
    for path in sorted(paths, key=len, reverse=True):
        if not parts or 2 * len(path) < len(parts[-1][0]):
            parts.append([])
        parts[-1].append(path)
    return parts


def _places(nodes: Tensor, count: int) -> Tensor:
    """Return for each of `count` nodes an index of it in `nodes` (in which -1 is no node)."""
    places = nodes.new_empty(count + 1)
    places[nodes] = torch.arange(len(nodes), device=nodes.device)
    return places[:count]


class _Branches(torch.autograd.Function):
    """Attention of query (heads, nodes · group, size) to key and value (heads, nodes, size), in blocks of branches.

    A block's weights are softmax(q · kᵀ) over the nodes of its row up to its own, with the future inside it masked.
    Query heads that share keys are rows of one product. Scores, their gradients and sums over blocks are at least fp32;
    the operands of products with weights and gradients of scores have the inputs' dtype.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: Tree) -> Tensor:
        output = torch.empty_like(query)
        weights: list[Tensor] = []
        keep = any(ctx.needs_input_grad) and _mean_context(tree) <= _KEPT * query.shape[2]
        group = query.shape[1] // key.shape[1]
        scores_of = _Scores(query, group)
        with torch.autocast(query.device.type, enabled=False):
            for branch in tree.branches:
                k, v = (_gathered(each, branch) for each in (key, value))
                k_precise = _precise(k)
                for heads, own, seen in _blocks(branch, group, len(key)):
                    shares = scores_of(query[heads, own], k_precise[heads, :seen]).softmax(-1).to(v.dtype)
                    output[heads, own] = torch.bmm(shares, v[heads, :seen])
                    if keep:
                        weights.append(shares)
        ctx.save_for_backward(query, key, value, output, *weights)
        ctx.tree = tree
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *weights = ctx.saved_tensors
        saved, group = iter(weights), query.shape[1] // key.shape[1]
        scores_of = _Scores(query, group)
        grad = grad_outputs[0].to(query.dtype).contiguous()
        # With weights P: ∂q = (P ∘ (∂P - δ)) k, ∂P = ∂o vᵀ, δ = Σ ∂o ∘ o (Dao et al., NeurIPS 2022, appendix B).
        delta = (_precise(grad) * output).sum(-1, keepdim=True)
        q_grad = torch.empty_like(query)
        k_grad, v_grad = (_precise(torch.zeros_like(each)) for each in (key, value))
        with torch.autocast(query.device.type, enabled=False):
            for branch in ctx.tree.branches:
                k, v = (_gathered(each, branch) for each in (key, value))
                k_precise, v_precise = _precise(k), _precise(v)
                k_part, v_part = (_gathered(each, branch, zeros=True) for each in (k_grad, v_grad))
                for heads, own, seen in _blocks(branch, group, len(key)):
                    q, above = query[heads, own], grad[heads, own]
                    shares = next(saved) if weights else scores_of(q, k_precise[heads, :seen]).softmax(-1)
                    _add_product(v_part[heads, :seen], shares.to(v.dtype).transpose(1, 2), above)
                    scores = scores_of.products(above, v_precise[heads, :seen])
                    scores = scores.sub_(delta[heads, own]).mul_(shares).to(k.dtype)
                    q_grad[heads, own] = torch.bmm(scores, k[heads, :seen])
                    _add_product(k_part[heads, :seen], scores.transpose(1, 2), q)
                if branch.shared:
                    path = torch.from_numpy(branch.path).to(key.device)
                    k_grad.index_add_(1, path, k_part)
                    v_grad.index_add_(1, path, v_part)
        return q_grad, k_grad.to(key.dtype), v_grad.to(value.dtype), None


class _Scores:
    """Scores (heads, tokens · group, seen) of blocks, which reuse one buffer."""

    def __init__(self, query: Tensor, group: int) -> None:
        self._group = group
        self._room = _precise(query.new_empty(0))
        mask = torch.full((_BLOCK, _BLOCK), -torch.inf, dtype=self._room.dtype, device=query.device)
        self._future = mask.triu_(1).repeat_interleave(group, dim=0)

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the masked products of a block's queries and keys, of which the last are those of its own tokens."""
        scores = self.products(query, key)
        tokens = query.shape[1] // self._group
        scores[:, :, -tokens:] += self._future[: query.shape[1], :tokens]
        return scores

    def products(self, one: Tensor, other: Tensor) -> Tensor:
        """Return one · otherᵀ in the dtype of `other`; one is (heads, rows, size)."""
        shape = (*one.shape[:2], other.shape[1])
        if self._room.numel() < math.prod(shape):
            self._room = other.new_empty(math.prod(shape))
        return torch.bmm(one.to(other.dtype), other.transpose(1, 2), out=self._room[: math.prod(shape)].view(shape))


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add one · other, which may have a lower precision, to a total."""
    if total.dtype == one.dtype:
        total.baddbmm_(one, other)
    else:
        total += torch.bmm(one, other)


def _precise(each: Tensor) -> Tensor:
    return each.to(torch.promote_types(each.dtype, torch.float32))


def _gathered(each: Tensor, branch: Branch, *, zeros: bool = False) -> Tensor:
    """Return keys or values (heads, tokens, size) of a row (a view if all nodes are its own), or as many zeros."""
    if not branch.shared:
        return each[:, branch.own]
    if zeros:
        return each.new_zeros(each.shape[0], len(branch.path), each.shape[2])
    return each[:, torch.from_numpy(branch.path).to(each.device)]


def _blocks(branch: Branch, group: int, heads: int) -> Iterator[tuple[slice, slice, int]]:
    """Yield each block of a branch's own nodes: its heads, its place in their queries, and how many tokens it sees.

    In a long row a block has few heads, so that its scores stay in the processor's cache.
    """
    own = branch.own
    for start in range(own.start, own.stop, _BLOCK):
        stop = min(start + _BLOCK, own.stop)
        seen = branch.shared + stop - own.start
        some = max(1, _SCORES // (_BLOCK * group * seen))
        for first in range(0, heads, some):
            yield slice(first, min(first + some, heads)), slice(start * group, stop * group), seen


def _mean_context(tree: Tree) -> float:
    """Return the average number of tokens that a node sees."""
    return float(tree.positions.mean()) + 1
