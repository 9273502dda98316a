"""What runs with one warm start share beside it: its evaluation before RL, which each would else play again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from envrl.build import form_of
from envrl.config.load import config_differences, load_run
from envrl.config.schema import Config
from envrl.errors import UserError
from envrl.eval.questions import asks_alike
from envrl.models.find import folder_here

_LEARNING = ("warm_start.", "objective.", "auxiliary.", "curriculum.", "replay.", "train.")
_OTHERWISE = (*_LEARNING, "seed", "checkpoint.", "eval.every", "eval.episodes")
_OF_TRAINING = ("tasks", "group_size", "max_steps", "temperature", "top_k", "top_p", "reward", "reward_scale")
_IDLE = (*_OTHERWISE, *(f"rollout.{key}" for key in (*_OF_TRAINING, "invalid_penalty", "invalid")))
"""The keys, or beginnings of keys, that an evaluation before RL does not depend on."""
_NEEDED = ("train.threads", "train.device")
"""Those of them that it does depend on, in its last digits."""


def shared_evaluations(config: Config) -> dict[str, dict[str, Any]]:
    """Return the lines of eval.jsonl before RL, by split, of the run whose warm start this one shares.

    Nothing is returned unless both runs evaluate in the same way: their lines would be equal. `seconds` says what the
    other run spent.
    """
    if not config.warm_start.path:
        return {}
    run = Path(config.warm_start.path).resolve().parent
    try:
        made = load_run(run)
        lines = (run / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    except (UserError, OSError, UnicodeDecodeError):  # the start lies alone, or another version made it
        return {}
    if folder_here(made.model.path) == folder_here(config.model.path):  # one model by two names
        made = replace(made, model=replace(made.model, path=config.model.path))
    differ = [k for k in config_differences(made, config) if k in _NEEDED or not k.startswith(_IDLE)]
    if (
        form_of(made) != form_of(config)
        or not asks_alike(made, config)
        or [key for key in differ if key != "eval.split"]
    ):
        return {}
    try:
        records = [json.loads(line) for line in lines]
        found = {r["split"]: r for r in records if (r["stage"], r["update"]) == ("rl", 0)}
        return {split: r | {"seconds": {"total": 0.0, "shared": r["seconds"]["total"]}} for split, r in found.items()}
    except (ValueError, KeyError, TypeError):  # a line is half written, or not ours
        return {}
