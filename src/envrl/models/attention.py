"""Causal attention in a tree of rows: each token sees those before it in its row."""

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
"""The name under which `transformers` finds it."""

_BLOCK = 64
"""Tokens whose weights are made at once: with more of them more lies in the future, with fewer products are slow."""
_SCORES = 1 << 19
"""Most scores of a block that are made at once, unless those of one head are more: two MiB in fp32."""
_KEPT = 16
"""Weights are kept for the backward pass where a token sees no more tokens, on average, than so many widths of a head.

They take no more memory then than what else a layer keeps; where there are more they are made again.
"""


@dataclass(frozen=True, slots=True)
class LaidRows:
    """A tree of rows on a device, and its rows end to end: `bounds` (rows + 1) in `nodes`, each token's node."""

    tree: Tree
    nodes: Tensor
    bounds: Tensor
    _before: dict[int, Tensor] = field(default_factory=dict)

    def before(self, distance: int) -> Tensor:
        """Return what `Tree.before` does, on the device; every layer asks for the same."""
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

    Raises `ValueError` for what a layer wants beyond that: with small numbers a cap on scores would go unnoticed.
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
    found = cast(Tensor, _Branches.apply(*flat, rows.tree))
    return found.unflatten(1, (nodes, -1)).transpose(0, 1).reshape(1, nodes, -1, size), None


ALL_ATTENTION_FUNCTIONS.register(TREE, _tree_attention)


def _by_rows(query: Tensor, key: Tensor, value: Tensor, rows: LaidRows, scale: float) -> Tensor:
    """Attend in each row by itself, what it shares included, by torch's kernels; return the nodes' part.

    It is done again in the backward pass: rows that share much are many times as long as their nodes.
    """
    attend = _varlen if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) else _rectangle
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    return cast(Tensor, again(attend, query, key, value, rows, scale))


def _varlen(query: Tensor, key: Tensor, value: Tensor, rows: LaidRows, scale: float) -> Tensor:
    """Attend by torch's own kernel for rows of different lengths, which exists for CUDA in half precision."""
    from torch.nn.attention.varlen import varlen_attn

    longest, groups = max(len(branch.path) for branch in rows.tree.branches), query.shape[1] // key.shape[1]
    # Repeated heads cost little here, and torch 2.11 cannot do without.
    q, k, v = (
        each[0].repeat_interleave(times, dim=0).transpose(0, 1)[rows.nodes]
        for each, times in ((query, 1), (key, groups), (value, groups))
    )
    found = varlen_attn(q, k, v, rows.bounds, rows.bounds, longest, longest, scale=scale, window_size=(-1, 0))
    return cast(Tensor, found)[_places(rows.nodes, query.shape[2])]


def _rectangle(query: Tensor, key: Tensor, value: Tensor, rows: LaidRows, scale: float) -> Tensor:
    """Attend in rows padded to rectangles: few calls, where branches would be thousands of small ones to a GPU."""
    found, nodes = [], []
    for paths in _of_like_length([torch.from_numpy(branch.path) for branch in rows.tree.branches]):
        part = pad_sequence(paths, batch_first=True, padding_value=-1).to(query.device)
        q, k, v = (each[0][:, part].transpose(0, 1) for each in (query, key, value))
        grouped = q.shape[1] != k.shape[1]
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        found.append(seen.transpose(1, 2).flatten(0, 1))
        nodes.append(part.flatten())
    return torch.cat(found)[_places(torch.cat(nodes), query.shape[2])]


def _of_like_length(paths: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return rows in parts, in each of which none is shorter than half of the longest: padding at most doubles them."""
    parts: list[list[Tensor]] = []
    for path in sorted(paths, key=len, reverse=True):
        if not parts or 2 * len(path) < len(parts[-1][0]):
            parts.append([])
        parts[-1].append(path)
    return parts


def _places(nodes: Tensor, count: int) -> Tensor:
    """Return for each of `count` nodes a place where it stands in `nodes` (-1: no node)."""
    places = nodes.new_empty(count + 1)
    places[nodes] = torch.arange(len(nodes), device=nodes.device)
    return places[:count]


class _Branches(torch.autograd.Function):
    """Attention of query (heads, nodes · group, size) to key and value (heads, nodes, size), in blocks of branches.

    A block's weights are softmax(q · kᵀ) over the nodes of its row up to its own; the future inside it is masked. Heads
    that share keys are rows of one product. Scores, their gradients and all sums over blocks are in fp32 or what is
    more precise; what is multiplied with weights and scores' gradients is of the inputs' own type.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: Tree) -> Tensor:
        found = torch.empty_like(query)
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
                    found[heads, own] = torch.bmm(shares, v[heads, :seen])
                    if keep:
                        weights.append(shares)
        ctx.save_for_backward(query, key, value, found, *weights)
        ctx.tree = tree
        return found

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, found, *weights = ctx.saved_tensors
        kept, group = iter(weights), query.shape[1] // key.shape[1]
        scores_of = _Scores(query, group)
        grad = grad_outputs[0].to(query.dtype).contiguous()
        # With weights P: ∂q = (P ∘ (∂P - δ)) k, ∂P = ∂o vᵀ, δ = Σ ∂o ∘ o (Dao et al., NeurIPS 2022, appendix B).
        delta = (_precise(grad) * found).sum(-1, keepdim=True)
        q_grad = torch.empty_like(query)
        k_grad, v_grad = (_precise(torch.zeros_like(each)) for each in (key, value))
        with torch.autocast(query.device.type, enabled=False):
            for branch in ctx.tree.branches:
                k, v = (_gathered(each, branch) for each in (key, value))
                k_precise, v_precise = _precise(k), _precise(v)
                k_part, v_part = (_gathered(each, branch, zeros=True) for each in (k_grad, v_grad))
                for heads, own, seen in _blocks(branch, group, len(key)):
                    q, above = query[heads, own], grad[heads, own]
                    shares = next(kept) if weights else scores_of(q, k_precise[heads, :seen]).softmax(-1)
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
    """Scores (heads, tokens · group, seen) of blocks, each of them in the memory of the one before."""

    def __init__(self, query: Tensor, group: int) -> None:
        self._group = group
        self._room = _precise(query.new_empty(0))
        mask = torch.full((_BLOCK, _BLOCK), -torch.inf, dtype=self._room.dtype, device=query.device)
        self._future = mask.triu_(1).repeat_interleave(group, dim=0)

    def __call__(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the products of a block's queries and keys, whose last ones are its own tokens', no future seen."""
        scores = self.products(query, key)
        tokens = query.shape[1] // self._group
        scores[:, :, -tokens:] += self._future[: query.shape[1], :tokens]
        return scores

    def products(self, one: Tensor, other: Tensor) -> Tensor:
        """Return one (heads, rows, size) · otherᵀ, of the type of `other`."""
        shape = (*one.shape[:2], other.shape[1])
        if self._room.numel() < math.prod(shape):
            self._room = other.new_empty(math.prod(shape))
        return torch.bmm(one.to(other.dtype), other.transpose(1, 2), out=self._room[: math.prod(shape)].view(shape))


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add one · other, which may be of less precision, to a total."""
    if total.dtype == one.dtype:
        total.baddbmm_(one, other)
    else:
        total += torch.bmm(one, other)


def _precise(each: Tensor) -> Tensor:
    return each.to(torch.promote_types(each.dtype, torch.float32))


def _gathered(each: Tensor, branch: Branch, *, zeros: bool = False) -> Tensor:
    """Return keys or values (heads, tokens, size) of a row, a view where all nodes are its own; or as many zeros."""
    if not branch.shared:
        return each[:, branch.own]
    if zeros:
        return each.new_zeros(each.shape[0], len(branch.path), each.shape[2])
    return each[:, torch.from_numpy(branch.path).to(each.device)]


def _blocks(branch: Branch, group: int, heads: int) -> Iterator[tuple[slice, slice, int]]:
    """Yield heads, where a block of a branch's own lies in their queries, and how many tokens its last one sees.

    Of a long row a block has few heads, so that its scores stay in a processor's cache.
    """
    own = branch.own
    for start in range(own.start, own.stop, _BLOCK):
        stop = min(start + _BLOCK, own.stop)
        seen = branch.shared + stop - own.start
        some = max(1, _SCORES // (_BLOCK * group * seen))
        for first in range(0, heads, some):
            yield slice(first, min(first + some, heads)), slice(start * group, stop * group), seen


def _mean_context(tree: Tree) -> float:
    """Return how many tokens a node sees on average."""
    return float(tree.positions.mean()) + 1
