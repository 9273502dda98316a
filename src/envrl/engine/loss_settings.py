"""What the loss of an optimiser step is told, and what it counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from envrl.engine.token_losses import AuxiliaryLoss
from envrl.objective.regularizers.tokens import PolicyTokens

OldLogprobs = Mapping[str, np.ndarray]
"""Log-probs of policy tokens by row origin, under the policy before the batch's first step or the reference model."""


Regularizer = Callable[[PolicyTokens], Tensor]
"""Returns a loss for each of the policy's tokens."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The settings of the loss; `weights` are the λ_c (the entropy is subtracted from the loss, all else is added)."""

    weights: Mapping[str, float]
    policy_loss: str = "ppo"
    knobs: Mapping[str, float | None] = field(default_factory=dict)
    kl_estimator: str = "k3"
    temperature: float = 1.0
    precision: str = "fp32"
    micro_batch_tokens: int = 16384
    checkpointing: bool = False
    importance_cap: float = 0.0
    """Cap of a token's importance weight (`truncated_importance`, `stale_importance`); 0: no importance weights."""
    importance_mask: float = 0.0
    """Factor by which a token's probability may differ from the sampled one for it to learn; 0: any."""
    auxiliary_losses: Mapping[str, AuxiliaryLoss] = field(default_factory=dict)
    """Losses of tokens by component, of those whose loss is not the cross-entropy."""
    regularizers: Mapping[str, Regularizer] = field(default_factory=dict)
    """By name; each has its weight in `weights`."""
    key: int = 0
    """Seeds what a policy loss draws in this optimiser step."""


@dataclass(slots=True)
class Totals:
    """Sums over the tokens of an optimiser step, kept as tensors until the end."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    largest: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0

    def add(self, name: str, values: Tensor, count: int | None = None) -> None:
        """Add values to a sum, of `count` tokens if they are sums of several."""
        total = values.detach().double().sum()
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] += values.numel() if count is None else count

    def add_largest(self, name: str, values: Tensor) -> None:
        largest = values.detach().double().max()
        self.largest[name] = torch.maximum(self.largest[name], largest) if name in self.largest else largest

    def plain(self) -> Totals:
        """Return the same in numbers of Python's, to be sent to another process."""
        sums = {name: value.cpu() for name, value in self.sums.items()}
        largest = {name: value.cpu() for name, value in self.largest.items()}
        return Totals(sums, self.counts, largest, self.tokens)

    def include(self, other: Totals) -> None:
        """Add what another process counted."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] += other.counts[name]
        for name, value in other.largest.items():
            self.largest[name] = torch.maximum(self.largest[name], value) if name in self.largest else value
        self.tokens += other.tokens

    def mean(self, name: str) -> float:
        return float(self.sums[name]) / max(self.counts[name], 1)

    def figures(self) -> dict[str, float]:
        """Return the mean of every summed quantity and the maximum of every other one.

        Of the importance ratios ρ it is their effective sample size as a share of the tokens, (mean ρ)² / mean ρ².
        """
        means = {name: self.mean(name) for name in self.sums}
        if "ratio" in means:
            means["effective_sample_size"] = means.pop("ratio") ** 2 / means.pop("ratio_squared")
        return means | {name: float(x) for name, x in self.largest.items()}
