"""Schedules of the weight of an auxiliary loss over the updates of a run."""

from __future__ import annotations

from math import cos, pi

from envrl.objective.checks import check_choice

SCHEDULES = ("cosine", "linear", "rise", "constant")


def weight_at(update: int, weight: float, schedule: str, length: int, floor: float = 0.0) -> float:
    """Return λ(t) = f + (λ − f) s(t) at update t (counted from 0), with weight λ and floor f.

    "cosine": s = ½ (1 + cos(π t / T)), "linear": s = 1 − t / T, both 0 from t = T = `length` on; "rise": 1 − s of
    "cosine"; "constant": s = 1.
    Raises `UserError` for an unknown schedule. Source: EnvRL, arXiv 2606.17680 (cosine, f = 0).
    """
    check_choice("weight of an auxiliary loss", "schedule", schedule, SCHEDULES)
    if schedule == "constant":
        return weight
    if update >= length:
        return weight if schedule == "rise" else floor
    done = update / length
    share = 1.0 - done if schedule == "linear" else 0.5 * (1.0 + cos(pi * done))
    return floor + (weight - floor) * (1.0 - share if schedule == "rise" else share)
