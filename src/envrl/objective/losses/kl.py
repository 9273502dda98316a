"""KL to a reference: the estimates that are losses of a token."""

from __future__ import annotations

from torch import Tensor

from envrl.objective.losses.common import LARGEST_LOG_RATIO


def kl_k2(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """Return k2 = ½ (logprob − reference)² of each token, whose gradient is that of KL(policy ‖ reference) in the mean.

    ∇ k2 = (logprob − reference) ∇ logprob: for tokens from the policy, the gradient that k1 has in the reward. As a
    value it is biased (Schulman, "Approximating KL divergence", 2020; gradients: arXiv 2510.01555).
    """
    difference_N = (logprobs_N - reference_logprobs_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return 0.5 * difference_N.square()


def kl_k3(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """Return the k3 estimate of KL(policy ‖ reference) of each token, exp(d) − d − 1 with d = reference − logprob.

    Never negative; for tokens from the policy it is unbiased as a value; its gradient is that of KL(reference ‖ policy)
    in the mean (Schulman, "Approximating KL divergence", 2020; DeepSeekMath, arXiv 2402.03300, equation 4).
    """
    difference_N = (reference_logprobs_N - logprobs_N).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    return difference_N.expm1() - difference_N


KL_LOSSES = {"k2": kl_k2, "k3": kl_k3}
"""Estimates of the KL that can be losses. k1 = logprob − reference cannot: the mean of its gradient is 0."""
