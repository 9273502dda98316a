"""Replays: which old groups an update learns from beside its own.

A replay is made with the `Plan` of the run. It may have `state()` and `load(state)`, for JSON that may hold
`TrajectoryGroup`s anywhere, which survive a checkpoint exactly, and `figures()`, for the update's line in
metrics.jsonl. `replays/` holds those that ship.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Protocol

from envrl.errors import UserError
from envrl.types import Trajectory, TrajectoryGroup


class Replay(Protocol):
    """Decides which groups an update learns from."""

    def mix(self, groups: Sequence[TrajectoryGroup], update: int) -> Sequence[TrajectoryGroup]:
        """Return the groups that the update learns from, given the groups it played; it may store some for later.

        A group with `advantages_G` is learned from with these, beside the policy's loss and times the group's `weight`.
        """
        ...


def checked(called: str, groups: Sequence[object], update: int) -> list[TrajectoryGroup]:
    """Return what a replay gave for an update, its episodes told apart; raise `UserError` if it cannot be learned from.

    `called` names the replay in the message.
    """
    for group in groups:
        if not isinstance(group, TrajectoryGroup):
            raise UserError(f"the {called} gave {group!r:.80}, which is no group of episodes")
        if any(trajectory.policy_version > update for trajectory in group.trajectories):
            raise UserError(f"the {called} gave episodes of a later update than {update}")
        given, count = group.advantages_G, len(group.trajectories)
        if given and not (len(given) == count and all(map(isfinite, (*given, group.weight)))):
            raise UserError(
                f"the {called} gave {count} episodes of '{group.task.id}' with the advantages {list(given)!r:.60} and "
                f"the weight {group.weight}: they are finite numbers, an advantage for each episode"
            )
    return _told_apart(groups)  # type: ignore[arg-type]


def _told_apart(groups: Sequence[TrajectoryGroup]) -> list[TrajectoryGroup]:
    """Return the groups with a new member number for every episode that has the name of an earlier one.

    Rows are told apart by policy version, task and member, and updates that are played ahead with the same weights have
    one version.
    """
    met: set[tuple[int, str, int]] = set()
    result = []
    for group in groups:
        trajectories = []
        for each in group.trajectories:
            member = each.member
            while (each.policy_version, each.task.id, member) in met:
                member += 1
            met.add((each.policy_version, each.task.id, member))
            trajectories.append(each if member == each.member else replace(each, member=member))
        result.append(replace(group, trajectories=tuple(trajectories)))
    return result


def start_of(trajectory: Trajectory) -> tuple[str, ...]:
    """Return the commands that were played before the policy's first (`Assignment.start`)."""
    chosen = next((n for n, step in enumerate(trajectory.transitions) if step.action.token_ids), 0)
    return tuple(step.action.text for step in trajectory.transitions[:chosen])


def fresh(group: TrajectoryGroup, update: int, age: int) -> TrajectoryGroup:
    """Return a group's episodes whose policy is at most `age` updates older than that of an update."""
    kept = tuple(each for each in group.trajectories if update - each.policy_version <= age)
    return replace(group, trajectories=kept)
