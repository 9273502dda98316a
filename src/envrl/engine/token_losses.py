"""The losses of the tokens that auxiliary objectives predict: cross-entropy, unless an objective brings its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from typing import Any

from torch import Tensor

from envrl.config.schema import Auxiliary
from envrl.errors import UserError
from envrl.objective.checks import check_one_a_token
from envrl.registry import Entry, blame, find

AuxiliaryLoss = Callable[[Tensor, Tensor], Tensor]
"""Returns each token's loss, given its log-prob (nats) and the number of its row, from 0."""


def auxiliary_losses(auxiliaries: Sequence[Auxiliary]) -> dict[str, AuxiliaryLoss]:
    """Return the losses of those objectives that bring one (`loss=` in `register`), by name."""
    entries = {each.name: (find("auxiliary", each.name), each.settings) for each in auxiliaries}
    return {
        name: partial(_checked, entry, _settings(entry, given))
        for name, (entry, given) in entries.items()
        if "loss" in entry.traits
    }


def _settings(entry: Entry, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings of the objective that its loss takes."""
    parameters = signature(entry.traits["loss"]).parameters.values()
    wanted = [each.name for each in parameters if each.kind is Parameter.KEYWORD_ONLY]
    for name in wanted:
        if name not in given:
            raise UserError(f"the loss of the {entry.called} has a setting '{name}', which the objective lacks: add it")
    return {name: given[name] for name in wanted}


def _checked(entry: Entry, settings: Mapping[str, Any], logprobs_N: Tensor, row_N: Tensor) -> Tensor:
    with blame(entry):
        losses_N = entry.traits["loss"](logprobs_N, row_N, **settings)
    check_one_a_token(f"the loss of the {entry.called}", losses_N, logprobs_N)
    return losses_N
