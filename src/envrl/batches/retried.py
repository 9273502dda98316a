"""Second attempts with help: which are played, and their rows, without the help and with a loss of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from envrl.config.schema import Config
from envrl.envs.answers import opened
from envrl.envs.protocol import TextEnv
from envrl.errors import UserError
from envrl.objective.retries.attempt import Retry
from envrl.registry import Entry, blame, find
from envrl.rendering.renderer import Renderer
from envrl.replay import start_of
from envrl.rollout.scripts import HasWalkthrough
from envrl.rollout.transcript import retold
from envrl.types import Assignment, LossTerm, Row, StopReason, Task, Trajectory, TrajectoryGroup, episodes_of


def second_attempts(
    groups: Sequence[TrajectoryGroup], config: Config, make_env: Callable[[], TextEnv]
) -> list[tuple[int, Assignment]]:
    """Return what is tried again: the number of a group, and the assignment of one episode, from the same start.

    Raises `UserError` if a user's function raises, or yields something that is no `Retry` of these episodes.
    """
    entry, count, numbers = find("retry", config.retry.name), dict[int, int](), dict[int, int]()
    for number, group in enumerate(groups):
        numbers |= {id(trajectory): number for trajectory in group.trajectories}

    def solve(task: Task) -> Sequence[str]:
        with opened(make_env()) as env:
            if isinstance(env, HasWalkthrough):
                return env.walkthrough(task)
        raise UserError(f"the {entry.called} tells of solutions, and the world '{config.env.name}' knows none")

    again = []
    with blame(entry):
        for retry in entry.target(groups, solve, **config.settings("retry")):
            number = _group_of(entry, retry, numbers)
            count[number] = count.get(number, 0) + 1
            if count[number] <= config.retry.most:
                again.append((number, _assigned(retry)))
    return again


def _group_of(entry: Entry, retry: object, numbers: dict[int, int]) -> int:
    if not isinstance(retry, Retry) or not isinstance(retry.help, str) or not retry.help.strip():
        raise UserError(f"the {entry.called} must yield envrl.Retry with a help in words, not {retry!r:.60}")
    if id(retry.trajectory) not in numbers:
        raise UserError(f"the {entry.called} yielded a second attempt at an episode that is none of the update's")
    return numbers[id(retry.trajectory)]


def _assigned(retry: Retry) -> Assignment:
    first = retry.trajectory
    length = len(first.transitions) if first.stop_reason is StopReason.MAX_STEPS else 0
    return Assignment(first.task, 1, length, start_of(first), retry.help)


def joined(
    groups: Sequence[TrajectoryGroup], numbers: Iterable[int], played: Sequence[TrajectoryGroup]
) -> tuple[list[TrajectoryGroup], dict[str, float]]:
    """Return the groups with the second attempts as further members, and figures; `numbers` are those of `played`."""
    result = list(groups)
    for number, attempts in zip(dict.fromkeys(numbers), played, strict=True):
        new = tuple(each for each in attempts.trajectories if each.stop_reason is not StopReason.SET_ASIDE)
        result[number] = replace(result[number], trajectories=(*result[number].trajectories, *new))
    tried = episodes_of(played)
    return result, {
        "retry/tried": len(tried),
        "retry/won": sum(each.success for each in tried),
        "retry/steps": sum(len(each.transitions) for each in tried),
        "retry/tokens": sum(len(segment.token_ids) for each in tried for segment in each.segments),
    }


def helped(trajectory: Trajectory) -> bool:
    """Return whether an episode's policy was told something that is not the world's."""
    return bool(trajectory.transitions) and bool(trajectory.transitions[0].observation.help)


def without_help(groups: Sequence[TrajectoryGroup], renderer: Renderer) -> tuple[list[TrajectoryGroup], set[int]]:
    """Return the groups with the prompts that their episodes have without help, and the ids of those that had some."""
    if not any(map(helped, episodes_of(groups))):
        return list(groups), set()
    plain, had = [], set[int]()
    for group in groups:
        members = [(retold(renderer, each, "") if helped(each) else each, helped(each)) for each in group.trajectories]
        had |= {id(each) for each, was in members if was}
        plain.append(replace(group, trajectories=tuple(each for each, _ in members if each is not None)))
    return plain, had


def shaped(rows: Iterable[Row], gamma: float) -> list[Row]:
    """Return policy rows whose policy terms are of the component `retry`, shaped by γ."""
    return [replace(row, terms=tuple(_shaped(term, gamma) for term in row.terms)) for row in rows]


def _shaped(term: LossTerm, gamma: float) -> LossTerm:
    if term.component != "policy":
        return term
    advantages = term.streams["advantages"]
    return replace(
        term, component="retry", streams={"advantages": advantages, "gamma": np.full_like(advantages, gamma)}
    )
