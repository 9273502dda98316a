"""A recipe's auxiliary objectives at work: their weights at an update, and the rows and terms that they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from envrl.config.schema import Auxiliary
from envrl.errors import UserError
from envrl.objective.schedule import weight_at
from envrl.randomness import key_of
from envrl.registry import Entry, failed, find
from envrl.rollout.wording import Wording
from envrl.samples.auxiliary import auxiliary_rows
from envrl.types import Example, InPass, LossTerm, Row, TrajectoryGroup, episodes_of


@dataclass(slots=True)
class Auxiliaries:
    """What all auxiliary objectives make of an update's episodes.

    `in_pass[i][n]` are the terms of segment n of episode i, `figures` what is to be logged.
    """

    rows: list[Row] = field(default_factory=list)
    in_pass: dict[int, dict[int, list[LossTerm]]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


def weights_of(auxiliaries: Sequence[Auxiliary], update: int, updates: int) -> dict[str, float]:
    """Return λ of each at an update (counted from 1; the schedule's t is one less) of a run of `updates`.

    It is 0 where the objective takes part in one update of `every`, and not in this one.
    """
    return {
        each.name: 0.0
        if update % each.common.every
        else weight_at(
            update - 1,
            each.common.weight,
            each.common.schedule,
            each.common.schedule_updates or updates,
            each.common.floor,
        )
        for each in auxiliaries
    }


def make_rows(
    auxiliaries: Sequence[Auxiliary], groups: Sequence[TrajectoryGroup], wording: Wording, key: Sequence[int | str]
) -> Auxiliaries:
    """Return the rows and terms of these objectives; which part of them is a function of `key`.

    Raises `UserError` where one of a user's raises, or yields what is no example.
    """
    made, episodes = Auxiliaries(), episodes_of(groups)
    for each in auxiliaries:
        found = auxiliary_rows(
            each.name,
            _yielded(find("auxiliary", each.name), groups, each.settings),
            episodes,
            lambda example, name=each.name: wording.pair(name, example),
            wording.context,
            each.common,
            key_of(*key, each.name),
        )
        made.rows += found.rows
        made.figures |= found.figures
        for episode, segments in found.in_pass.items():
            for segment, terms in segments.items():
                made.in_pass.setdefault(episode, {}).setdefault(segment, []).extend(terms)
    return made


def _yielded(
    entry: Entry, groups: Sequence[TrajectoryGroup], settings: dict[str, object]
) -> Iterator[Example | InPass]:
    """Yield what an objective makes of these groups, each looked at first."""
    known = {id(trajectory) for trajectory in episodes_of(groups)}
    try:
        for each in entry.target(groups, **settings):
            _check(entry, each, known)
            yield each
    except Exception as error:  # anybody's function may raise anything
        raise failed(entry, error) from error


def _check(entry: Entry, each: object, known: set[int]) -> None:
    if not isinstance(each, (Example, InPass)):
        raise UserError(
            f"the {entry.called} must yield envrl.Example or envrl.InPass, not {type(each).__name__} ({each!r:.60})"
        )
    if isinstance(each, InPass) and id(each.trajectory) not in known:
        raise UserError(f"the {entry.called} yielded an InPass of an episode that is none of the update's")
    if not 0 <= each.step < len(each.trajectory.transitions):
        raise UserError(
            f"the {entry.called} asks about step {each.step} of an episode of {len(each.trajectory.transitions)} steps "
            "(counted from 0)"
        )
    if isinstance(each, Example) and not all(isinstance(text, str) for text in (each.question, each.target)):
        raise UserError(f"the {entry.called} must give question and target as texts, not {each.target!r:.60}")
