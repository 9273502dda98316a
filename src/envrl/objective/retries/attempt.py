"""A second attempt with help, and the loss of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from envrl.types import Task, Trajectory

if TYPE_CHECKING:  # a recipe's settings are read from signatures, without torch
    from torch import Tensor

Solve = Callable[[Task], Sequence[str]]
"""Returns the commands of a task's walkthrough."""


@dataclass(frozen=True, slots=True)
class Retry:
    """An episode whose task is tried again, from the same start, by a policy that is told `help`."""

    trajectory: Trajectory
    help: str


def shaped_loss(logprobs_N: Tensor, advantages_N: Tensor, gamma_N: Tensor) -> Tensor:
    """Return − A · p / (p + γ) of each token, p the policy's probability of it *without* the help.

    Its gradient − A · γ p / (p + γ)² · ∇ log p is largest at p = γ: what was said with help and is unlikely without it
    is not lost, as it is where the ratio to the helped policy is clipped. Source: LUFFY, arXiv 2504.14945;
    Critique-GRPO, arXiv 2506.03106.

    >>> import torch
    >>> logprob = torch.tensor([0.1]).log().requires_grad_()
    >>> loss = shaped_loss(logprob, torch.tensor([2.0]), torch.tensor([0.1]))
    >>> round(loss.item(), 6)
    -1.0
    >>> round(torch.autograd.grad(loss, logprob)[0].item(), 6)
    -0.5
    """
    chances_N = logprobs_N.exp()
    return -advantages_N * chances_N / (chances_N + gamma_N)
