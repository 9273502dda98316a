"""Floating-point operations of passes, from what is multiplied with what.

A forward pass of a token costs two operations a weight that it is multiplied with, and in each attention layer four for
each position that it sees and each value of the queries' width. The backward pass takes as much for the gradients of
what entered a product, and as much again for those of trained weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from envrl.costs.shape import Shape
from envrl.costs.workload import Workload


@dataclass(frozen=True, slots=True)
class Products:
    """How many weights a token is multiplied with in the layers, how many of these are `trained`, and in the head.

    `attended` is the queries' width, summed over the layers with attention.
    """

    layers: int
    trained: int
    head: int
    head_trained: bool
    attended: int


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one pass over rows: `forward`, `both` passes, and `again` with every layer's forward run twice."""

    forward: float
    both: float
    again: float


def pass_flops(products: Products, tokens: float, squares: float, scored: float) -> Flops:
    """Return what causal sequences take: so many tokens, the sum of their squared lengths, and tokens with logits.

    forward = 2 · layers · tokens + 4 · attended · squares / 2 + 2 · head · scored; both passes take 6 a trained weight.
    """
    attention = 2 * products.attended * squares
    body = 2 * products.layers * tokens + attention
    logits = 2.0 * products.head * scored
    both = 2 * body + attention + 2 * products.trained * tokens + logits * (3 if products.head_trained else 2)
    return Flops(body + logits, both, both + body)


def products_of(shape: Shape) -> Products:
    """Return the products of a decoder that is trained whole."""
    attended = shape.attention_layers * shape.attention_width
    return Products(shape.matrix_count, shape.matrix_count, shape.embedding_count, True, attended)


def forward_flops(shape: Shape, tokens: float, sequence: float) -> float:
    """Return the operations of a forward pass over tokens in causal sequences of that length, without the head."""
    return pass_flops(products_of(shape), tokens, tokens * sequence, 0).forward


@dataclass(frozen=True, slots=True)
class Passes:
    """How often an update's tokens are run: forward passes alone (old log-probs, a reference), and both passes."""

    forward: int
    both: int
    again: bool = False
    """Whether layers are run again in the backward pass."""
    steps: float = 1.0
    """Optimiser steps."""


def update_flops(shape: Shape, work: Workload, passes: Passes, scored: float) -> float:
    """Return the operations of an update, the logits of the `scored` tokens run again in every backward pass."""
    products = products_of(shape)
    found = pass_flops(products, work.trained, work.trained * work.sequence, scored)
    logits = pass_flops(products, 0, 0, scored).forward
    return passes.forward * found.forward + passes.both * ((found.again if passes.again else found.both) + logits)
