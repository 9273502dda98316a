"""Configurations of runs that older versions made, in the keys of today: such a run can be looked at, not resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OWNERS = {
    "baseline": ("grpo", "rloo", "gigpo"),
    "std": ("grpo", "gigpo"),
    "gamma": ("gigpo",),
    "step_weight": ("gigpo",),
    "step_norm": ("gigpo",),
    "clip_low": ("ppo", "gspo", "cispo"),
    "clip_high": ("ppo", "gspo", "cispo"),
    "dual_clip": ("ppo", "gspo", "cispo"),
}
"""Keys of `[objective]` that are now settings of what is chosen, in a table of its name; others had no use for them."""


def is_older(table: Mapping[str, Any]) -> bool:
    """Return whether a run's configuration, read as TOML, has a key that has another place now."""
    objective = table.get("objective")
    return isinstance(objective, Mapping) and any(key in objective for key in _OWNERS)


def in_present_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration, read as TOML, with the keys of today."""
    if not is_older(table):
        return dict(table)
    objective = {key: value for key, value in table["objective"].items() if key not in _OWNERS}
    chosen = (objective.get("estimator", "grpo"), objective.get("loss", "ppo"))
    for owner in chosen:
        settings = {key: value for key, value in table["objective"].items() if owner in _OWNERS.get(key, ())}
        if settings:
            objective[owner] = settings
    return {**table, "objective": objective}
