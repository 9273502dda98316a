"""The policy's own commands at states of the demonstrations, each carried out in the world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from envrl.imitation.method import Lesson, Player, bare
from envrl.sequences import evenly_spaced
from envrl.types import Assignment, Trajectory


@dataclass(frozen=True, slots=True)
class Tried:
    """The state before a step of a demonstration, and episodes up to other commands of the policy there, each once."""

    lesson: Lesson
    step: int
    others: tuple[Trajectory, ...]


def try_alternatives(
    round: int, demonstrations: Sequence[Lesson], player: Player, states: int, count: int
) -> tuple[list[Tried], int]:
    """Return so many states, spread over the demonstrations, and the number of commands that the policy drew there.

    At each it draws `count` commands; the expert's own, repeats and responses without a command are left out.
    """
    places: dict[tuple[str, tuple[str, ...]], tuple[Lesson, int]] = {}
    for lesson in demonstrations:
        commands = tuple(step.action.text for step in lesson.trajectory.transitions)
        for step in (step for step, imitated in enumerate(lesson.imitated) if imitated):
            places.setdefault((lesson.trajectory.task.id, commands[:step]), (lesson, step))
    keys = list(places)
    chosen = {keys[i]: places[keys[i]] for i in evenly_spaced(len(keys), min(states, len(keys)))}
    assignments = [
        Assignment(lesson.trajectory.task, count, max_steps=step + 1, start=start)
        for (_, start), (lesson, step) in chosen.items()
    ]
    others: dict[tuple[str, tuple[str, ...]], dict[str, Trajectory]] = {key: {} for key in chosen}
    played = player.play(round, assignments)
    for each in (each for each in played if each.transitions):
        *start, command = (step.action.text for step in each.transitions)
        key = each.task.id, tuple(start)
        if key in chosen and command and command != _expert(*chosen[key]):
            others[key].setdefault(command, bare(each))
    tried = [Tried(lesson, step, tuple(others[key].values())) for key, (lesson, step) in chosen.items()]
    return tried, len(played)


def _expert(lesson: Lesson, step: int) -> str:
    return lesson.trajectory.transitions[step].action.text
