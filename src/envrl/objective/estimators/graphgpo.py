"""GraphGPO: steps compared by how near to the goal they lead, in the graph of what the group has seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from math import inf
from typing import Literal

import numpy as np

from envrl.objective.advantage import Array, Indices, Steps
from envrl.objective.checks import check_choice, check_range
from envrl.objective.estimators.common import index_sets, normalise_sets, total_rewards
from envrl.objective.estimators.grpo import grpo
from envrl.ranges import Fraction, NonNegative
from envrl.registry import register

GOAL = object()
REWARD = 10.0
"""Of a step that reaches the goal: the published code's reward of a win."""


@register("estimator", "graphgpo", title="GraphGPO", compares=True)
def graphgpo(
    steps: Steps,
    *,
    gamma: Fraction = 0.1,  # how fast a step's score falls with the distance to the goal
    step_weight: NonNegative = 1.0,  # weight of the graph's advantage
    distance: Literal["proximity", "progress"] = "proximity",  # where the step leads to, or by how much it comes nearer
    step_norm: Literal["mean_std", "mean"] = "mean_std",  # normalisation of scores
    baseline: Literal["trajectories", "steps"] = "trajectories",  # of the episode part, as in grpo
    std: bool = True,  # the episode part is divided by the group's standard deviation
) -> Array:
    """Graph advantage A = A_grpo + w · S (GraphGPO, arXiv 2605.26684).

    A group's graph has its observations as nodes and an edge a step; the last step of a success (a positive return)
    leads to the goal. d is the fewest edges to the goal; where the goal cannot be reached, one more than the farthest
    node that reaches it; 1 everywhere in a group without a success. A step's score is 10 γ^d(next) ("proximity") or
    10 γ^(d(next) − d(here) + 1) ("progress"), minus its own penalty; S is the score, normalised among the steps of the
    group with the same observation as in GiGPO. With "proximity" and `mean_std`, S fades eight steps from the goal,
    where scores come near ε.

    "a" leads to the goal by "b", or back to "a": the scores there are 10 · 0.1 and 10 · 0.1².

    >>> from envrl.objective.advantage import ESTIMATORS
    >>> rewards, seen = [[0.0, 1.0], [0.0]], [["a", "b"], ["a"]]
    >>> plain = {"step_norm": "mean", "std": False, "final_observations": ["", "a"]}
    >>> [each.round(9).tolist() for each in ESTIMATORS["graphgpo"](rewards, seen, **plain)]
    [[0.95, 0.5], [-0.95]]
    """
    check_choice("graphgpo", "distance", distance, ("proximity", "progress"))
    check_choice("graphgpo", "step_norm", step_norm, ("mean_std", "mean"))
    check_range("graphgpo", "gamma", gamma, 0.0, 1.0)
    check_range("graphgpo", "step_weight", step_weight, 0.0, inf)
    following = _following(steps)
    scores_N = np.zeros_like(steps.rewards_N)
    for rows in index_sets(steps.groups_N):
        scores_N[rows] = _scores(steps, rows, following, gamma, distance)
    states = zip(steps.groups_N, steps.observations_N, strict=True)
    step_N = normalise_sets(scores_N - steps.penalties_N, states, step_norm == "mean_std")
    return grpo(steps, baseline=baseline, std=std) + step_weight * step_N


def _following(steps: Steps) -> list[Hashable]:
    """Return the node that each step leads to; a failure whose last observation is not given ends in one of its own."""
    nodes: list[Hashable] = [*steps.observations_N[1:], None]
    won = total_rewards(steps) > 0.0
    for episode, (start, stop) in enumerate(zip(steps.offsets[:-1], steps.offsets[1:], strict=True)):
        if stop > start:
            final = steps.final_observations[episode] if steps.final_observations else None
            nodes[stop - 1] = GOAL if won[episode] else (episode,) if final is None else final
    return nodes


def _scores(steps: Steps, rows: Indices, following: list[Hashable], gamma: float, distance: str) -> Array:
    """Return 10 γ^… of each of a group's steps."""
    here = [steps.observations_N[row] for row in rows]
    there = [following[row] for row in rows]
    before: dict[Hashable, list[Hashable]] = {}
    for node, following_node in zip(here, there, strict=True):
        before.setdefault(following_node, []).append(node)
    edges = _edges_to_goal(before)
    lost = max(edges.values()) + 1 if GOAL in before else 1
    if GOAL not in before:
        edges = {}
    to_goal = np.array([edges.get(node, lost) for node in there], dtype=np.float64)
    if distance == "progress":
        to_goal += 1.0 - np.array([edges.get(node, lost) for node in here])
    return REWARD * gamma**to_goal


def _edges_to_goal(before: dict[Hashable, list[Hashable]]) -> dict[Hashable, int]:
    """Return the fewest edges from each node to the goal, of the nodes that reach it; `before`: whence edges lead."""
    edges: dict[Hashable, int] = {GOAL: 0}
    waiting = deque([GOAL])
    while waiting:
        node = waiting.popleft()
        for other in before.get(node, ()):
            if other not in edges:
                edges[other] = edges[node] + 1
                waiting.append(other)
    return edges
