"""`--quick`: shrink any recipe so that a language model of 135 million parameters finishes in about a minute."""

from __future__ import annotations

from envrl.config.load import override
from envrl.config.schema import Config

LARGEST = {
    "env.max_steps": 10,
    "warm_start.demonstrations": 2,
    "warm_start.epochs": 1,
    "warm_start.batch": 2,
    "warm_start.held_out": 1,
    "rollout.tasks": 1,
    "rollout.group_size": 2,
    "rollout.max_steps": 4,
    "rollout.response_tokens": 48,
    "train.updates": 2,
    "train.epochs": 1,
    "train.minibatches": 1,
    "train.trajectories": 0,
    "eval.every": 0,
    "eval.final": 1,
    "eval.free_episodes": 0,
    "eval.probe_episodes": 0,
}
"""The upper bound that `--quick` sets for each setting; lower values stay."""
OF_METHODS = {
    "dagger": {"rounds": 1, "episodes": 2},
    "rejection": {"rounds": 1, "tasks": 1, "episodes": 2},
    "early_experience": {"states": 2, "alternatives": 2},
    "self_reflection": {"states": 2, "alternatives": 2},
}
"""The same for the settings of the warm-start methods that ship."""
_STEPS = ("env.max_steps", "rollout.max_steps")
_UNLIMITED = ("rollout.max_steps", "eval.final")
"""Settings of which 0 means no limit, so 0 is lowered too."""


def quick(config: Config) -> Config:
    """Return a configuration with tasks, steps, demonstrations and evaluations lowered to `LARGEST`, marked `quick`."""
    lowered = [("quick", "true")]
    for name, largest in LARGEST.items():
        section, _, key = name.partition(".")
        value = getattr(getattr(config, section), key)
        if value > largest or (name in _UNLIMITED and not value):
            lowered.append((name, str(min(largest, config.env.max_steps) if name in _STEPS else largest)))
    method = config.warm_start.method
    for name, largest in OF_METHODS.get(method, {}).items():
        if config.settings("warm_start")[name] > largest:
            lowered.append((f"warm_start.{method}.{name}", str(largest)))
    return override(config, lowered)
