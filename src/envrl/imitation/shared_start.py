"""Reuse the evaluation before RL among runs that share a warm start, so that it is not played again for each."""

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
"""Keys and key prefixes that an evaluation before RL does not depend on."""
_NEEDED = ("train.threads", "train.device")
"""Exceptions: an evaluation depends on these by rounding."""


def learned_in_warm_start(config: Config, run: Path) -> int:
    """Return the tokens that the warm start of a run has learned from, by the log of the run that made it.

    Raises `UserError` where a shared one lies beside no log.
    """
    start = config.warm_start.path
    while config.warm_start.path:
        run = Path(config.warm_start.path).resolve().parent
        if not (run / "config.toml").is_file():
            raise UserError(
                f"train.token_budget counts what the warm start has learned from, and beside '{start}' lies no run "
                "that says it: set it to 0, or name the warm start in the run that made it"
            )
        config = load_run(run)
    log = run / "warm_start.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return json.loads(lines[-1])["tokens"] if lines else 0


def shared_evaluations(config: Config) -> dict[str, dict[str, Any]]:
    """Return the lines of eval.jsonl before RL, by split, from the run whose warm start this run shares.

    The result is empty unless both runs evaluate in the same way, so that their lines would be equal. `seconds` holds
    the time that the other run spent.
    """
    if not config.warm_start.path:
        return {}
    run = Path(config.warm_start.path).resolve().parent
    try:
        other = load_run(run)
        lines = (run / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    except (UserError, OSError, UnicodeDecodeError):  # the warm start has no run beside it, or another version made it
        return {}
    if folder_here(other.model.path) == folder_here(config.model.path):  # two names of one model
        other = replace(other, model=replace(other.model, path=config.model.path))
    differ = [k for k in config_differences(other, config) if k in _NEEDED or not k.startswith(_IDLE)]
    if (
        form_of(other) != form_of(config)
        or (config.eval.probe_episodes and not asks_alike(other, config))
        or [key for key in differ if key != "eval.split"]
    ):
        return {}
    try:
        records = [json.loads(line) for line in lines]
        first = {r["split"]: r for r in records if (r["stage"], r["update"]) == ("rl", 0)}
        return {split: r | {"seconds": {"total": 0.0, "shared": r["seconds"]["total"]}} for split, r in first.items()}
    except (ValueError, KeyError, TypeError):  # a line is incomplete or has another format
        return {}
