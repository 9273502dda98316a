"""EnvRL: text agents that learn by reinforcement, and learn how their world works while they do (arXiv 2606.17680)."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envrl.envs.registry import make, register_env
    from envrl.eval.evaluate import evaluate
    from envrl.memory import Recalled
    from envrl.objective.retries.attempt import Retry
    from envrl.objective.teachers.lesson import Lesson
    from envrl.registry import register
    from envrl.rendering.prompts import PromptFormat
    from envrl.rendering.responses import Parsed
    from envrl.trainer.loop import train
    from envrl.types import Assignment, Completion, Example, InPass, TrajectoryGroup

__version__ = "0.1.0"
__all__ = [
    "Assignment",
    "Completion",
    "Example",
    "InPass",
    "Lesson",
    "Parsed",
    "PromptFormat",
    "Recalled",
    "Retry",
    "TrajectoryGroup",
    "__version__",
    "evaluate",
    "make",
    "register",
    "register_env",
    "train",
]

# Two threads that spin while they wait for each other are 50 times slower than one where other processes use the cores
# too; after 1,000 turns of its loop a waiting thread sleeps instead. torch's OpenMP reads this when it is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_LAZY = {
    "Lesson": "envrl.objective.teachers.lesson",
    "Recalled": "envrl.memory",
    "Retry": "envrl.objective.retries.attempt",
    **dict.fromkeys(("Assignment", "Completion", "Example", "InPass", "TrajectoryGroup"), "envrl.types"),
    "Parsed": "envrl.rendering.responses",
    "PromptFormat": "envrl.rendering.prompts",
    "make": "envrl.envs.registry",
    "register": "envrl.registry",
    "register_env": "envrl.envs.registry",
    "evaluate": "envrl.eval.evaluate",
    "train": "envrl.trainer.loop",
}
_PACKAGES = {
    "config",
    "data",
    "engine",
    "envs",
    "eval",
    "models",
    "objective",
    "rendering",
    "report",
    "rollout",
    "samples",
    "trainer",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _PACKAGES:
        return import_module(f"envrl.{name}")
    raise AttributeError(f"module 'envrl' has no attribute '{name}'")
