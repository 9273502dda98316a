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


def is_older(table: Mapping[str, Any]) -> bool:
    """Return whether a run's configuration, read as TOML, has a key that has another place now."""
    return any(key in _section(table, name) for name, keys in _MOVED.items() for key in keys)


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
    return present


def _section(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = table.get(name, {})
    return section if isinstance(section, Mapping) else {}
