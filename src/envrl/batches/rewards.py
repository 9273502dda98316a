"""What a recipe adds to the rewards of the world, step by step: the KL to the model that RL started from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from envrl.config.schema import Config
from envrl.samples.rows import free_tokens, origin_of, policy_rows
from envrl.types import FloatArray, Row, Trajectory

Reference = Callable[[Sequence[Row]], Mapping[str, FloatArray]]
"""`Engine.reference_logprobs`."""


@dataclass(frozen=True, slots=True)
class AddedRewards:
    """What is added to the reward of each step, one array per episode, and figures to log."""

    rewards: list[NDArray[np.float64]]
    figures: dict[str, float] = field(default_factory=dict)


def added_rewards(trajectories: Sequence[Trajectory], config: Config, reference: Reference | None) -> AddedRewards:
    """Return what the recipe adds to the rewards of these episodes.

    Without `reference` the KL is left out. Logs `kl`, the mean of k1 over sampled tokens.
    """
    rewards = [np.zeros(len(each.transitions)) for each in trajectories]
    figures: dict[str, float] = {}
    objective = config.objective
    if objective.kl_weight and objective.kl_in == "reward" and reference is not None:
        divergence = kl_of_steps(trajectories, reference)
        rewards = [each - objective.kl_weight * kl_S for each, kl_S in zip(rewards, divergence, strict=True)]
        tokens = sum(len(free_tokens(step.action)) for each in trajectories for step in each.transitions)
        figures["kl"] = float(sum(map(np.sum, divergence))) / max(tokens, 1)
    return AddedRewards(rewards, figures)


def kl_of_steps(trajectories: Sequence[Trajectory], reference: Reference) -> list[NDArray[np.float64]]:
    """Return k1 = Σ logprob − reference over the sampled tokens of each step, one array per episode, in nats.

    `logprob` is the one that was recorded as the token was sampled, so the mean of k1 is the KL from the policy that
    played to the reference. Fixed tokens have none. Source: REINFORCE++, arXiv 2501.03262; Schulman 2020.
    """
    told = reference([row for each in trajectories for row in _rows(each)])
    return [_of_episode(each, told) for each in trajectories]


def _rows(trajectory: Trajectory) -> list[Row]:
    return policy_rows(trajectory, np.zeros(len(trajectory.transitions)), "token_mean", idle=True)


def _of_episode(trajectory: Trajectory, told: Mapping[str, FloatArray]) -> NDArray[np.float64]:
    found_S = np.zeros(len(trajectory.transitions))
    for number, segment in enumerate(trajectory.segments):
        logprobs = iter(told.get(origin_of(trajectory, number), ()))
        for span in segment.spans:
            action = trajectory.transitions[span.step].action
            found_S[span.step] += sum(action.logprobs[n] - float(next(logprobs)) for n in free_tokens(action))
    return found_S
