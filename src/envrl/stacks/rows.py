"""Rows of the auxiliary objectives from the episodes of any stack: texts and a tokenizer in, token ids out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from envrl.batches.auxiliary import make_rows
from envrl.config.schema import Auxiliary, AuxiliaryConfig
from envrl.errors import UserError, suggest
from envrl.objective.schedule import weight_at
from envrl.registry import find
from envrl.rendering.renderer import Form
from envrl.types import Action, Observation, Row, StopReason, Task, Trajectory, TrajectoryGroup, Transition


@dataclass(frozen=True, slots=True)
class Episode:
    """An episode as text: (observation, action) of each turn, and the observation after the last action.

    Without an `end` the last turn makes no row. `commands` are the admissible commands of each turn, if there are such.
    The task is what stands behind "Your task is to: " in the first observation, or else all of it.
    """

    turns: tuple[tuple[str, str], ...]
    end: str | None = None
    commands: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class AuxiliaryRow:
    """A sequence of an objective: its token ids, 1 for each token that is predicted from those before it, its weight.

    `loss_mask` is as long as `token_ids`. The weight multiplies the row's loss and does not change the denominator.
    """

    name: str
    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What an objective counts in a trainer: λ(t) as in `[auxiliary.NAME]`, and how its rows are made.

    `updates` is T of the schedule (0: all of the run); `rows` are arguments of `auxiliary_rows`.
    """

    weight: float = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    floor: float = 0.0
    updates: int = 0
    rows: Mapping[str, Any] = field(default_factory=dict)

    def weight_at(self, update: int, updates: int) -> float:
        """Return λ(t) at an update, counted from 0, of a run of so many."""
        return weight_at(update, self.weight, self.schedule, self.updates or updates, self.floor)


def auxiliary_rows(
    name: str,
    episodes: Sequence[Episode],
    tokenizer: Any,
    *,
    history: int = 2,
    show_admissible: bool = False,
    system_message: str = "",
    template_arguments: Mapping[str, Any] | None = None,
    longest: int = 0,
    deduplicate: bool = True,
    fraction: float = 1.0,
    tokens: Literal["target", "all"] = "target",
    placebo: bool = False,
    seed: int = 0,
    **settings: Any,
) -> list[AuxiliaryRow]:
    """Return the rows of the objective `name` ("state", "inverse", …) for these episodes, as envrl's own training does.

    A row is a chat by the chat template of `tokenizer` (a tokenizer of `transformers`): the task, the last `history`
    turns, the observation before the step, the question; then its answer, with the mark that ends it. Only the answer
    is predicted, or with `tokens = "all"` all but the first token. Rows of more than `longest` tokens (0: the
    tokenizer's own limit) are left out; `settings` are the objective's own, such as `question` (docs/method.md), all
    else is as in `[auxiliary.NAME]`. Raises `UserError`.
    """
    entry = find("auxiliary", name)
    if other := [key for key in settings if key not in entry.settings]:
        raise UserError(f"the {entry.called} has no setting '{other[0]}'{suggest(other[0], entry.settings)}")
    common = AuxiliaryConfig(weight=1.0, deduplicate=deduplicate, fraction=fraction, tokens=tokens, placebo=placebo)
    auxiliary = Auxiliary(name, common, {each.name: each.default for each in entry.settings.values()} | settings)
    if "loss" in entry.traits:
        raise UserError(
            f"the {entry.called} has a loss of its own, and rows for another trainer have the cross-entropy"
        )
    if auxiliary.in_pass:
        raise UserError(f"the {entry.called} has no rows of its own: its tokens are in the policy's")
    groups = [TrajectoryGroup(each.task, (each,)) for each in map(_trajectory, range(len(episodes)), episodes)]
    renderer = _renderer(
        tokenizer,
        Form(
            layout="steps",
            history=history,
            show_admissible=show_admissible,
            format="action",
            system_message=system_message,
            template_arguments=template_arguments or {},
        ),
        longest,
    )
    return [_plain(name, row) for row in make_rows([auxiliary], groups, renderer, (seed,)).rows]


def _renderer(tokenizer: Any, form: Form, longest: int) -> Any:
    from envrl.models.template import ChatTemplate
    from envrl.models.tokenizer import Codec
    from envrl.rendering.chats import ChatRenderer

    template = ChatTemplate(Codec(tokenizer), (), form.template_arguments)
    return ChatRenderer(template, form, longest or int(tokenizer.model_max_length))


def _trajectory(number: int, episode: Episode) -> Trajectory:
    """Return an episode as a record; of its tokens and rewards nothing is known, and the rows need nothing."""
    texts = [text for text, _ in episode.turns] + ([] if episode.end is None else [episode.end])
    if episode.commands and len(episode.commands) != len(episode.turns):
        raise UserError(f"an episode of {len(episode.turns)} turns has commands for {len(episode.commands)}")
    listed = [*episode.commands, *([None] * (len(texts) - len(episode.commands)))]
    seen = [Observation(text, commands) for text, commands in zip(texts, listed, strict=True)]
    steps = zip(seen, episode.turns, seen[1:], strict=False)
    transitions = tuple(
        Transition(before, Action(said), 0.0, after, False, False) for before, (_, said), after in steps
    )
    return Trajectory(Task(str(number), ""), 0, transitions, (), StopReason.DONE)


def _plain(name: str, row: Row) -> AuxiliaryRow:
    (term,) = row.terms
    predicted = set(term.positions_T.tolist())
    mask = tuple(int(place in predicted) for place in range(len(row.token_ids)))
    return AuxiliaryRow(name, tuple(row.token_ids.tolist()), mask, float(term.weights_T[0]))
