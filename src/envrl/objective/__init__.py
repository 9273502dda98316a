"""The objective as pure functions: advantages, losses, and their weights over time. Only `policy` needs torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES = {"advantage", "aggregation", "placebo", "policy", "schedule"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"envrl.objective.{name}")
    raise AttributeError(f"module 'envrl.objective' has no attribute '{name}'")
