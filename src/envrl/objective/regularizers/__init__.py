"""Regularizers of the policy's own tokens: one file and one class or function each.

A regularizer is called with the `PolicyTokens` of some rows, in the pass of the policy loss, and returns a loss for
each of them. They are weighed as those of the policy loss, so micro-batches and processes change nothing. A class may
have `observe(figures)`, which gets the figures of every update, `figures()`, and `state()` with `load(state)` (JSON).
"""
