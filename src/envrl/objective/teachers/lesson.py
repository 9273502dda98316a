"""What a teacher teaches, and the loss of the policy's tokens to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from envrl.types import Trajectory

if TYPE_CHECKING:  # a recipe's settings are read from signatures, without torch
    from torch import Tensor

LARGEST_RATIO = 2.0
"""Cap of a token's importance weight, as in the code of SDPO's authors."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """An episode whose tokens the teacher scores, told `told` in its prompt; `weight` multiplies their loss."""

    trajectory: Trajectory
    told: str = ""
    weight: float = 1.0


def reverse_kl(logprobs_N: Tensor, teacher_N: Tensor, sampled_N: Tensor) -> Tensor:
    """Return ρ · d with the gradient ρ · d · ∇ log p of each sampled token, d = log p − log q, in nats.

    Its mean over tokens from the policy is KL(p ‖ q), and so is its gradient. q is the teacher's probability and
    ρ = min(p / p_sampled, 2) weighs a token that an earlier policy sampled; neither has a gradient. Source: GKD, arXiv
    2306.13649; Thinking Machines, "On-Policy Distillation", 2025; SDPO, arXiv 2601.20802.

    >>> import torch
    >>> logprob = torch.tensor([-1.0], requires_grad=True)
    >>> loss = reverse_kl(logprob, torch.tensor([-3.0]), torch.tensor([-1.0]))
    >>> loss.item()
    2.0
    >>> torch.autograd.grad(loss, logprob)[0].item()
    2.0
    """
    current_N = logprobs_N.detach()
    weighed_N = (current_N - sampled_N).exp().clamp(max=LARGEST_RATIO) * (current_N - teacher_N)
    return weighed_N * (1.0 + logprobs_N - current_N)
