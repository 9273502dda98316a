"""The heads that a recipe's objectives need."""

from __future__ import annotations

from envrl.config.schema import Config
from envrl.models.forward import state_width
from envrl.models.heads import new_head
from envrl.models.load import LanguageModel
from envrl.objective.advantage import ESTIMATORS


def give_heads(model: LanguageModel, config: Config) -> LanguageModel:
    """Return the model with the heads whose values the recipe's estimator reads; one that it has is kept."""
    for name in sorted(ESTIMATORS[config.objective.estimator].levels({})):  # the order in which they are loaded
        if name not in model.heads:
            model.heads[name] = new_head(state_width(model.network), model.device)
    return model
