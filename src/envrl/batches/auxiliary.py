"""The auxiliary objectives of a recipe: their weights at an update, and the rows and terms that they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import inf
from numbers import Integral, Real
from typing import get_args

from envrl.batches.examples import AuxiliaryRows, auxiliary_rows
from envrl.batches.selection import Memory
from envrl.config.schema import Auxiliary, Regularizer, Reward, Teacher
from envrl.errors import UserError, suggest
from envrl.objective.schedule import weight_at
from envrl.randomness import key_of
from envrl.registry import Entry, blame, find
from envrl.rendering.renderer import Renderer
from envrl.types import Example, InPass, Pair, Part, Trajectory, TrajectoryGroup, episodes_of

Predict = Callable[[Sequence[Pair]], list[str]]
"""Returns what the policy says to each prompt, as text."""
Write = Callable[[Sequence[Example]], list[str]]
MOST_EXAMPLES = 1_000
"""Examples of an objective for each step of the episodes, which none needs: one that yields more is endless."""


def weights_of(auxiliaries: Sequence[Auxiliary], update: int, updates: int) -> dict[str, float]:
    """Return the weight λ of each objective at an update (counted from 1; the schedule's t is one less).

    It is 0 if the objective is active only every `every` updates, and not in this one.
    """
    weights = scheduled_weights(auxiliaries, update, updates)
    return {each.name: 0.0 if update % each.common.every else weights[each.name] for each in auxiliaries}


def scheduled_weights(
    weighed: Sequence[Auxiliary | Regularizer | Reward | Teacher], update: int, updates: int
) -> dict[str, float]:
    """Return the weight λ of each of these at an update (counted from 1; the schedule's t is one less)."""
    return {
        each.name: weight_at(
            update - 1,
            each.common.weight,
            each.common.schedule,
            each.common.schedule_updates or updates,
            each.common.floor,
        )
        for each in weighed
    }


def make_rows(
    auxiliaries: Sequence[Auxiliary],
    groups: Sequence[TrajectoryGroup],
    renderer: Renderer,
    key: Sequence[int | str],
    memory: Memory | None = None,
    update: int = 0,
    predict: Predict | None = None,
) -> AuxiliaryRows:
    """Return the rows and terms of these objectives; `key` seeds the choice of a fraction of them.

    `memory` is what selection knows of earlier updates; `predict` is the policy, for objectives whose targets it
    writes. Raises `UserError` if a user's objective raises, or yields something that is not an example.
    """
    made, episodes = AuxiliaryRows(), episodes_of(groups)
    for each in auxiliaries:
        its = auxiliary_rows(
            each.name,
            _yielded(find("auxiliary", each.name), groups, each.settings, _writer(each.name, renderer, predict)),
            episodes,
            lambda example, name=each.name: renderer.pair(name, example),
            renderer.context,
            each.common,
            key_of(*key, each.name),
            renderer,
            memory,
            update,
        )
        made.rows.extend(its.rows)
        made.figures.update(its.figures)
        made.add_terms(its.in_pass)
    return made


def try_out(auxiliary: Auxiliary, group: TrajectoryGroup, layout: str) -> None:
    """Raise `UserError` if an objective fails on a group of episodes, or its tokens are in no row of this layout."""
    entry = find("auxiliary", auxiliary.name)
    for each in _yielded(
        entry, [group], auxiliary.settings, lambda examples: [example.question for example in examples]
    ):
        if isinstance(each, InPass) and auxiliary.common.reservoir:
            raise UserError(
                f"the {entry.called} has tokens of the policy's own rows, and a reservoir keeps rows of their own: "
                f"leave auxiliary.{auxiliary.name}.reservoir out"
            )
        if isinstance(each, InPass) and auxiliary.common.tokens == "all":
            raise UserError(
                f"the {entry.called} has tokens of the policy's own rows, and tokens = 'all' is for rows of their own: "
                "leave it out"
            )
        if isinstance(each, InPass) and each.part == "observation" and layout == "steps":
            raise UserError(
                f"the {entry.called} predicts observations in the policy's own rows, which needs rollout.layout = "
                "'concat': a row of the layout 'steps' ends before the next observation"
            )


def _writer(name: str, renderer: Renderer, predict: Predict | None) -> Write:
    """Return how the policy answers examples of an objective."""

    def write(examples: Sequence[Example]) -> list[str]:
        if predict is None:
            raise UserError(f"the {find('auxiliary', name).called} needs a policy at hand, which writes its targets")
        return predict([renderer.pair(name, example) for example in examples])

    return write


def _yielded(
    entry: Entry, groups: Sequence[TrajectoryGroup], settings: dict[str, object], write: Write
) -> Iterator[Example | InPass]:
    """Yield the objective's examples of these groups, each checked.

    Raises `UserError` at `MOST_EXAMPLES` for each step of the groups: there seems to be no end of them.
    """
    episodes = episodes_of(groups)
    known = {id(trajectory) for trajectory in episodes}
    steps = sum(len(trajectory.transitions) for trajectory in episodes)
    with blame(entry):
        given = (groups, write) if entry.traits.get("writes") else (groups,)
        for count, each in enumerate(entry.target(*given, **settings)):
            if count >= MOST_EXAMPLES * max(1, steps):
                raise UserError(
                    f"the {entry.called} yields more than {MOST_EXAMPLES:,} examples a step and goes on: it has no "
                    "end, or asks far too much"
                )
            yield _checked(entry, each, known)


def _checked(entry: Entry, each: object, known: set[int]) -> Example | InPass:
    """Return a yielded value; raise `UserError` if it is not a valid example of these episodes."""
    who = f"the {entry.called}"
    if not isinstance(each, (Example, InPass)):
        raise UserError(f"{who} must yield envrl.Example or envrl.InPass, not {type(each).__name__} ({each!r:.60})")
    what = f"{who} yielded an {type(each).__name__}"
    trajectory, step = each.trajectory, each.step
    if not isinstance(trajectory, Trajectory):
        raise UserError(f"{what} whose trajectory is {trajectory!r:.60}")
    if not (isinstance(step, Integral) and 0 <= step < len(trajectory.transitions)):
        raise UserError(f"{what} of step {step!r}: the episode has {len(trajectory.transitions)}, counted from 0")
    if not (isinstance(each.weight, Real) and 0.0 <= each.weight < inf):
        raise UserError(f"{what} of weight {each.weight!r}: it is a number from 0 on")
    if isinstance(each, InPass):
        if id(trajectory) not in known:
            raise UserError(f"{what} of an episode that is none of the update's")
        if each.part not in get_args(Part):
            raise UserError(f"{what} of the part {each.part!r}{suggest(str(each.part), get_args(Part))}")
        if isinstance(each.masked, str) or not all(isinstance(text, str) for text in each.masked):
            raise UserError(f"{what} whose masked texts are {each.masked!r:.60}, no tuple of texts")
        return each
    texts = {"question": each.question, "target": each.target}
    texts |= {name: text for name in ("command", "following") if (text := getattr(each, name)) is not None}
    texts |= {f"choices[{number}]": choice for number, choice in enumerate(each.choices)}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{what} whose {name} is {text!r:.60}, no text")
    if isinstance(each.choices, str):
        raise UserError(f"{what} whose choices are one text: they are a tuple of texts")
    return each
