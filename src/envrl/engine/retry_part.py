"""The part of the loss of second attempts, whose policy was helped."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from envrl.engine.loss_settings import Totals
from envrl.engine.policy_part import stream
from envrl.models.scores import TokenScores
from envrl.objective.retries.attempt import shaped_loss
from envrl.types import Row


def retry_part(rows: Sequence[Row], scores: TokenScores, weights_N: Tensor, totals: Totals) -> Tensor:
    """Return Σ w · `shaped_loss` of the tokens of second attempts; log the mean of their log-probs without the help."""
    advantages, gamma = (stream(rows, "retry", name, scores.logprobs.device) for name in ("advantages", "gamma"))
    losses = shaped_loss(scores.logprobs, advantages, gamma)
    totals.add("loss/retry", losses)
    totals.add("retry/logprob", scores.logprobs)
    return (weights_N * losses).sum()
