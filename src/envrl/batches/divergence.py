"""The KL to the model that RL started from, taken from the rewards of the world step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from envrl.config.schema import Config
from envrl.samples.rows import free_tokens, origin_of, policy_rows
from envrl.types import FloatArray, Row, Trajectory, TrajectoryGroup, episodes_of

Reference = Callable[[Sequence[Row]], Mapping[str, FloatArray]]
"""`Engine.reference_logprobs`."""


def less_divergence(
    groups: Sequence[TrajectoryGroup], config: Config, reference: Reference | None
) -> tuple[Sequence[TrajectoryGroup], dict[str, float]]:
    """Return the groups with w · k1 taken from the reward of each step, if the recipe asks for it, and figures to log.

    Without `reference` the KL is left out. Logs `kl`, the mean of k1 over sampled tokens.
    """
    objective = config.objective
    if not objective.kl_weight or objective.kl_in != "reward" or reference is None:
        return groups, {}
    trajectories = episodes_of(groups)
    divergence = kl_of_steps(trajectories, reference)
    tokens = sum(len(free_tokens(step.action)) for each in trajectories for step in each.transitions)
    left = iter([-objective.kl_weight * kl_S for kl_S in divergence])
    charged = [
        replace(group, trajectories=tuple(_with_rewards(each, next(left)) for each in group.trajectories))
        for group in groups
    ]
    return charged, {"kl": float(sum(map(np.sum, divergence))) / max(tokens, 1)}


def _with_rewards(trajectory: Trajectory, added_S: NDArray[np.float64]) -> Trajectory:
    steps = zip(trajectory.transitions, added_S.tolist(), strict=True)
    return replace(trajectory, transitions=tuple(replace(step, reward=step.reward + more) for step, more in steps))


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
