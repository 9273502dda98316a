"""Probe questions about the world: state prediction and inverse dynamics, in the form that the recipe trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envrl.config.schema import Config
from envrl.registry import find
from envrl.rendering.renderer import Renderer
from envrl.rollout.in_pass import pairs_in_pass
from envrl.types import Pair, Trajectory, TrajectoryGroup


@dataclass(frozen=True, slots=True)
class Questions:
    """Pairs in tokens, one per transition, episode by episode."""

    state: list[Pair]
    inverse: list[Pair]


def ask(config: Config, renderer: Renderer, trajectories: Sequence[Trajectory]) -> Questions:
    """Return the questions about every transition of these episodes."""
    return Questions(state_pairs(config, renderer, trajectories), inverse_pairs(config, renderer, trajectories))


def state_pairs(config: Config, renderer: Renderer, trajectories: Sequence[Trajectory]) -> list[Pair]:
    """Return the state prediction pairs, in the policy's own sequence if RL (or else the warm start) trains in pass."""
    if _in_pass(config):
        return pairs_in_pass(trajectories, renderer)
    return _pairs("state", config, renderer, trajectories)


def inverse_pairs(config: Config, renderer: Renderer, trajectories: Sequence[Trajectory]) -> list[Pair]:
    """Return the inverse dynamics pairs."""
    return _pairs("inverse", config, renderer, trajectories)


def asks_alike(a: Config, b: Config) -> bool:
    """Return whether two recipes ask the same questions about the same episodes."""
    return _in_pass(a) == _in_pass(b) and all(a.auxiliary(name) == b.auxiliary(name) for name in ("state", "inverse"))


def _in_pass(config: Config) -> bool:
    """Return whether the next observation is predicted in the policy's pass, in RL or else in the warm start."""
    rl, warm = ([each for each in config.auxiliaries(stage) if each.asks == "state"] for stage in ("", "warm_start"))
    return any(each.in_pass for each in rl or warm)


def _pairs(name: str, config: Config, renderer: Renderer, trajectories: Sequence[Trajectory]) -> list[Pair]:
    groups = [TrajectoryGroup(trajectory.task, (trajectory,)) for trajectory in trajectories]
    settings = config.auxiliary(name) | {"last": True}  # ask about every transition, whatever is trained
    return [renderer.pair(name, example) for example in find("auxiliary", name).target(groups, **settings)]
