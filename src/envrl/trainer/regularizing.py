"""The recipe's regularizers: made for a run, called with the policy's tokens, and saved with it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from envrl.component import Component
from envrl.config.schema import Config, Regularizer
from envrl.objective.checks import check_one_a_token
from envrl.objective.regularizers.tokens import PolicyTokens
from envrl.registry import find


class Regularizing(Component):
    """A regularizer of the recipe, a registered class or function."""

    def __init__(self, of: Regularizer) -> None:
        entry = find("regularizer", of.name)
        make = entry.target if inspect.isclass(entry.target) else partial(partial, entry.target)
        super().__init__(entry, lambda: make(**of.settings))

    def __call__(self, tokens: PolicyTokens) -> Tensor:
        """Return the loss of each token; raise `UserError` for a result of the wrong shape."""
        losses_N = self.do(lambda: self.made(tokens))
        check_one_a_token(f"the {self.entry.called}", losses_N, tokens.logprobs_N)
        return losses_N


class Regularizers(dict[str, Regularizing]):
    """All regularizers of the recipe, by name."""

    def __init__(self, config: Config) -> None:
        super().__init__({each.name: Regularizing(each) for each in config.regularizers()})

    def observe(self, figures: Mapping[str, float]) -> None:
        """Pass an update's figures to those that want them."""
        for each in self.values():
            if hasattr(each.made, "observe"):
                each.do(partial(each.made.observe, figures))

    def figures(self) -> dict[str, float]:
        """Return their figures as NAME/FIGURE."""
        having = {name: each for name, each in self.items() if hasattr(each.made, "figures")}
        return {
            f"{name}/{figure}": value
            for name, each in having.items()
            for figure, value in each.do(each.made.figures).items()
        }

    def state(self) -> dict[str, Any]:
        """Return their states as plain JSON."""
        return {name: each.state() for name, each in self.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore their states from a checkpoint."""
        for name, each in self.items():
            if name in state:
                each.load(state[name])
