"""How the weight of an auxiliary loss changes over the updates of a run."""

from __future__ import annotations

from math import cos, pi

from envrl.objective.checks import check_choice

SCHEDULES = ("cosine", "linear", "constant")


def weight_at(update: int, weight: float, schedule: str, length: int) -> float:
    """Return λ(t) at update t, counted from 0: "cosine" λ ½ (1 + cos(π t / T)), "linear" λ (1 − t / T), "constant" λ.

    From t = T = `length` on, cosine and linear are 0. Raises `UserError` for an unknown schedule. Source: EnvRL, arXiv
    2606.17680 (cosine).
    """
    check_choice("weight of an auxiliary loss", "schedule", schedule, SCHEDULES)
    if schedule == "constant":
        return weight
    if update >= length:
        return 0.0
    done = update / length
    return weight * (0.5 * (1.0 + cos(pi * done)) if schedule == "cosine" else 1.0 - done)
