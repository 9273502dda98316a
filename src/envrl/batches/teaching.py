"""The tokens that a recipe's teachers score: terms in the policy's own rows, with the teacher's log-probs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from envrl.config.schema import Config, Teacher
from envrl.errors import UserError
from envrl.objective.teachers.lesson import Lesson
from envrl.registry import Entry, blame, find
from envrl.rendering.renderer import Renderer
from envrl.rollout.transcript import retold
from envrl.samples.rows import free_tokens, origin_of, policy_rows
from envrl.types import FloatArray, LossTerm, Row, Trajectory, TrajectoryGroup, episodes_of

Scores = Callable[[str, Sequence[Row]], Mapping[str, FloatArray]]
"""`Engine.teacher_logprobs`."""
Terms = dict[int, dict[int, list[LossTerm]]]
"""Terms in the policy's rows, by episode and segment number."""


@dataclass(frozen=True, slots=True)
class Taught:
    """What teachers add to the policy's rows, and figures to log."""

    terms: Terms = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


def taught(
    groups: Sequence[TrajectoryGroup], teachers: Sequence[Teacher], config: Config, renderer: Renderer, scores: Scores
) -> Taught:
    """Return a term with the teacher's log-probs for each row of each episode that is taught, by each teacher.

    An episode that does not fit the context with what is told is left out and counted. Raises `UserError` if a user's
    teacher raises, or yields something that is no lesson.
    """
    made, numbers = Taught(), {id(trajectory): n for n, trajectory in enumerate(episodes_of(groups))}
    for teacher in teachers:
        lessons = lessons_of(teacher, groups)
        heard = [_heard(lesson, renderer) for lesson in lessons]
        told = scores(teacher.name, [row for each in heard if each for row in _rows(each, config)])
        for lesson, trajectory in zip(lessons, heard, strict=True):
            if trajectory is None:
                continue
            by_step = _by_step(trajectory, told)
            for segment, row in _numbered(lesson.trajectory, config):
                steps = [span.step for span in lesson.trajectory.segments[segment].spans]
                term = _term(row.terms[0], teacher.name, lesson.weight, np.concatenate([by_step[n] for n in steps]))
                place = made.terms.setdefault(numbers[id(lesson.trajectory)], {})
                place.setdefault(segment, []).append(term)
        made.figures[f"taught/{teacher.name}"] = len(heard) - heard.count(None)
        if None in heard:
            made.figures[f"taught/{teacher.name}_too_long"] = heard.count(None)
    return made


def _heard(lesson: Lesson, renderer: Renderer) -> Trajectory | None:
    """Return the episode as the teacher sees it: with what the policy was told, and then what it is told itself."""
    if not lesson.told:
        return lesson.trajectory
    first = lesson.trajectory.transitions[:1]
    told = [*(step.observation.help for step in first if step.observation.help), lesson.told]
    return retold(renderer, lesson.trajectory, "\n\n".join(told))


def _term(policy: LossTerm, name: str, weight: float, teacher_T: FloatArray) -> LossTerm:
    streams = {"sampled_logprobs": policy.streams["sampled_logprobs"], "teacher_logprobs": teacher_T}
    return replace(policy, component=name, weights_T=policy.weights_T * np.float32(weight), streams=streams)


def lessons_of(teacher: Teacher, groups: Sequence[TrajectoryGroup]) -> list[Lesson]:
    """Return a teacher's lessons for these groups; raise `UserError` if they are anything else."""
    entry = find("teacher", teacher.name)
    known, met = {id(trajectory) for trajectory in episodes_of(groups)}, set[int]()
    with blame(entry):
        lessons = list(entry.target(groups, **teacher.settings))
    for lesson in lessons:
        _check(entry, lesson, known, met)
    return lessons


def _check(entry: Entry, lesson: object, known: set[int], met: set[int]) -> None:
    who = f"the {entry.called}"
    if not isinstance(lesson, Lesson):
        raise UserError(f"{who} must yield envrl.Lesson, not {type(lesson).__name__} ({lesson!r:.60})")
    if id(lesson.trajectory) not in known:
        raise UserError(f"{who} yielded a lesson of an episode that is none of the update's")
    if id(lesson.trajectory) in met:
        raise UserError(f"{who} yielded two lessons of one episode: its tokens have one teacher")
    if not (isinstance(lesson.weight, int | float) and isfinite(lesson.weight) and lesson.weight >= 0):
        raise UserError(f"{who} yielded a lesson of weight {lesson.weight!r}: it is a number from 0 on")
    if not isinstance(lesson.told, str):
        raise UserError(f"{who} yielded a lesson that tells {lesson.told!r:.60}, no text")
    met.add(id(lesson.trajectory))


def _numbered(trajectory: Trajectory, config: Config) -> list[tuple[int, Row]]:
    """Return the rows of an episode's segments with a token that was sampled among several, with their numbers."""
    numbers = {origin_of(trajectory, number): number for number in range(len(trajectory.segments))}
    return [(numbers[row.origin], row) for row in _rows(trajectory, config)]


def _rows(trajectory: Trajectory, config: Config) -> list[Row]:
    nothing, objective = np.zeros(len(trajectory.transitions)), config.objective
    return policy_rows(trajectory, nothing, objective.aggregation, idle=True, constant=config.row_tokens)


def _by_step(trajectory: Trajectory, told: Mapping[str, FloatArray]) -> dict[int, NDArray[np.float32]]:
    """Return the log-probs of the tokens of each step that were sampled among several."""
    found = {}
    for number, segment in enumerate(trajectory.segments):
        logprobs, first = told.get(origin_of(trajectory, number), np.zeros(0, dtype=np.float32)), 0
        for span in segment.spans:
            count = len(free_tokens(trajectory.transitions[span.step].action))
            found[span.step] = logprobs[first : first + count]
            first += count
    return found
