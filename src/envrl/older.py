"""Configurations of runs that older versions made, in the keys of today: such a run can be looked at, not resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOVED = {
    "objective": {
        "baseline": ("grpo", "rloo", "gigpo"),
        "std": ("grpo", "gigpo"),
        "gamma": ("gigpo",),
        "step_weight": ("gigpo",),
        "step_norm": ("gigpo",),
        "clip_low": ("ppo", "gspo", "cispo"),
        "clip_high": ("ppo", "gspo", "cispo"),
        "dual_clip": ("ppo", "gspo", "cispo"),
    },
    "env": dict.fromkeys(("products", "goals", "nouns", "fixes", "compact"), ("webshop",)),
}
"""Keys of a section that are now settings of what is chosen, in a table of its name; others had no use for them."""
_CHOICES = {"objective": {"estimator": "grpo", "loss": "ppo"}, "env": {"name": "household"}}
"""The keys that choose, with the default of then."""

_STATE = "auxiliary.state.{0}, or auxiliary.echo.{0} in the policy's own rows,"
RETIRED = {
    "objective.state_weight": _STATE.format("weight"),
    "objective.state_rows": "the choice between auxiliary.state and auxiliary.echo",
    "objective.state_fraction": _STATE.format("fraction"),
    "objective.state_question": "auxiliary.state.question",
    "objective.inverse_weight": "auxiliary.inverse.weight",
    "objective.inverse_fraction": "auxiliary.inverse.fraction",
    "objective.inverse_question": "auxiliary.inverse.question",
    **{f"objective.{key}": f"auxiliary.NAME.{key}" for key in ("deduplicate", "schedule", "schedule_updates")},
    "objective.placebo": "auxiliary.NAME.placebo",
    "warm_start.state_weight": f"warm_start.{_STATE.format('weight').replace('or ', 'or warm_start.')}",
    "warm_start.state_rows": "the choice between warm_start.auxiliary.state and warm_start.auxiliary.echo",
    "warm_start.inverse_weight": "warm_start.auxiliary.inverse.weight",
    "warm_start.fraction": "warm_start.auxiliary.NAME.fraction",
}
"""Keys that are gone, each with what took its place."""


def is_older(table: Mapping[str, Any]) -> bool:
    """Return whether a run's configuration, read as TOML, has a key that has another place now."""
    moved = any(key in _section(table, name) for name, keys in _MOVED.items() for key in keys)
    return moved or any(_retired(table, section) for section in ("objective", "warm_start"))


def in_present_keys(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's configuration, read as TOML, with the keys of today."""
    present = dict(table)
    for name, moved in _MOVED.items():
        before = _section(table, name)
        if not any(key in before for key in moved):
            continue
        present[name] = section = {key: value for key, value in before.items() if key not in moved}
        for choice, default in _CHOICES[name].items():
            owner = section.get(choice, default)
            if settings := {key: value for key, value in before.items() if owner in moved.get(key, ())}:
                section[owner] = settings
    return _with_auxiliaries(present)


def _with_auxiliaries(table: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with tables for the auxiliary losses that were keys of `objective` and `warm_start`."""
    present = dict(table)
    if objective := _retired(table, "objective"):
        same = {key: objective.get(key, default) for key, default in _SAME.items()}
        present["objective"] = _without(table, "objective")
        if found := _auxiliaries(objective, "separate", 1.0, same):
            present["auxiliary"] = found
    if warm := _retired(table, "warm_start"):
        same = _SAME | {"schedule": "constant", "deduplicate": False}
        fraction = warm.get("fraction", 0.25)
        shares = {"inverse_fraction": fraction}
        if warm.get("state_rows") == "separate":
            shares["state_fraction"] = fraction
        present["warm_start"] = _without(table, "warm_start")
        questions = {key: value for key, value in objective.items() if key.endswith("_question")}  # of both stages
        if found := _auxiliaries({**questions, **warm, **shares}, "in_pass", 1.0, same):
            present["warm_start"]["auxiliary"] = found
    return present


_SAME = {
    "schedule": "cosine",
    "schedule_updates": 0,
    "floor": 0.0,
    "every": 1,
    "deduplicate": True,
    "tokens": "target",
    "aggregation": "token_mean",
    "placebo": False,
}
"""What both losses shared, with the defaults of then, and what could not be chosen."""


def _auxiliaries(
    keys: Mapping[str, Any], state_rows: str, fraction: float, same: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the table of each loss that has a weight."""
    state = "echo" if keys.get("state_rows", state_rows) == "in_pass" else "state"
    found: dict[str, dict[str, Any]] = {}
    for before, name in (("state", state), ("inverse", "inverse")):
        weight = keys.get(f"{before}_weight", 0.0)
        if not (isinstance(weight, (int, float)) and weight > 0):
            continue
        found[name] = {"weight": weight, **same, "fraction": keys.get(f"{before}_fraction", fraction)}
        if name != "echo" and f"{before}_question" in keys:
            found[name]["question"] = keys[f"{before}_question"]
    return found


def _retired(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the keys of a section that are gone, with their values."""
    return {key: value for key, value in _section(table, name).items() if f"{name}.{key}" in RETIRED}


def _without(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in _section(table, name).items() if f"{name}.{key}" not in RETIRED}


def _section(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = table.get(name, {})
    return section if isinstance(section, Mapping) else {}
