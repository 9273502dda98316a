"""EPO: the policy's entropy is held in a band around the mean of its own past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from envrl.errors import UserError
from envrl.objective.regularizers.tokens import PolicyTokens, row_means
from envrl.ranges import Count, NonNegative
from envrl.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("regularizer", "epo", title="entropy band")
class Epo:
    """The distance of the entropy H from the band [κ_l H̄, κ_r H̄], with H̄ the mean entropy of earlier updates.

        P = max(0, κ_l H̄ − H) + max(0, H − κ_r H̄)

    H is the mean over a row's policy tokens, or each token's own; P is 0 in the first update. Source: EPO, arXiv
    2509.22576, section 4, whose penalty is a constant outside the band and so has no gradient.

    The first update had an entropy of 1, so the band is [0.8, 1.2]. Two rows with means of 0.5 and 1.4:

    >>> import torch
    >>> epo = Epo()
    >>> epo.observe({"entropy": 1.0})
    >>> entropies, rows = torch.tensor([0.4, 0.6, 1.4]), torch.tensor([0, 0, 1])
    >>> [round(value, 4) for value in epo(PolicyTokens(-entropies, entropies, rows)).tolist()]
    [0.3, 0.3, 0.2]
    """

    def __init__(
        self,
        *,
        lower: NonNegative = 0.8,  # κ_l: the band begins at this times the mean entropy of earlier updates
        upper: NonNegative = 1.2,  # κ_r: and ends at this times it
        window: Count = 0,  # earlier updates in that mean, the latest ones; 0: all
        level: Literal["row", "token"] = "row",  # what is held in the band: the mean entropy of a row | of each token
    ) -> None:
        if not lower < upper:
            raise UserError(f"regularizer.epo.lower = {lower:g} must be below regularizer.epo.upper = {upper:g}")
        self._lower, self._upper, self._window, self._level = lower, upper, window, level
        self._entropies: list[float] = []

    @property
    def band(self) -> tuple[float, float] | None:
        """The lowest and the highest entropy without a penalty, in nats; None before the first update."""
        if not self._entropies:
            return None
        mean = sum(self._entropies) / len(self._entropies)
        return self._lower * mean, self._upper * mean

    def __call__(self, tokens: PolicyTokens) -> Tensor:
        """Return the penalty of each token; with the level "row", that of its row."""
        if self.band is None:
            return 0.0 * tokens.entropies_N
        low, high = self.band
        found_N = tokens.entropies_N if self._level == "token" else row_means(tokens.entropies_N, tokens.row_N)
        return (low - found_N).clamp(min=0.0) + (found_N - high).clamp(min=0.0)

    def observe(self, figures: Mapping[str, float]) -> None:
        """Add an update's mean entropy of policy tokens to the past; one that learned from none has no entropy."""
        if "entropy" in figures:
            self._entropies = [*self._entropies, figures["entropy"]][-self._window :]

    def figures(self) -> dict[str, float]:
        """Return the band, once there is one."""
        return dict(zip(("low", "high"), self.band or (), strict=False))

    def state(self) -> Any:
        return self._entropies

    def load(self, state: Any) -> None:
        self._entropies = list(state)
