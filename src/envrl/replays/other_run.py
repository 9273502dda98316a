"""What the replay of another run holds, for a run that begins with it (`replay.start`); checks of such a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from envrl.config.load import config_differences, load_run
from envrl.config.schema import Config
from envrl.errors import UserError
from envrl.models.checkpoints import latest_checkpoint
from envrl.registry import find

_OTHERWISE = ("env.split", "env.max_steps", "env.workers", "env.timeout", "env.place", "env.data")
"""Keys of the world that its texts do not depend on."""
_ROLLOUT = ("tasks", "group_size", "slots", "max_steps", "sampler", "ahead", "precision", "response_tokens")
"""Keys of the rollout that neither prompts, log-probs nor rewards of an episode depend on."""


def begin(config: Config, load: Callable[[Any], None], vocabulary: Mapping[str, int] | None) -> None:
    """Pass the state of the replay of the run `replay.start` to `load`.

    Raises `UserError` if the run's episodes are of another world, form, vocabulary (None: not known yet) or version.
    """
    state = state_of(config)
    shared = Path(config.warm_start.path or ".") / "tokenizer.json"
    if vocabulary is None and config.warm_start.path and shared.is_file():
        vocabulary = _vocabulary(shared)
    if vocabulary is not None:
        _check_tokenizer(config, vocabulary)
    try:
        load(state)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"replay.start = '{config.replay.start}' is of another version of envrl ({error})") from error


def state_of(config: Config) -> Any:
    """Return the saved state of the replay of the run `replay.start`, its episodes as of version 0.

    Version 0 is before the first update, so that all of them count as stale. Raises `UserError` if the run has none, or
    its episodes are of another world, form or reward.
    """
    run, name = Path(config.replay.start), config.replay.name
    called = f"replay.start = '{run}'"
    if not hasattr(find("replay", name).target, "load"):
        raise UserError(
            f"{called} has no effect, since the replay '{name}' keeps nothing: choose another, or leave it out"
        )
    checkpoint = check_same(config, "replay", run, _matters)
    saved = json.loads((checkpoint / "state.json").read_text(encoding="utf-8")) if checkpoint else {}
    if "replay" not in saved.get("components", {}):
        raise UserError(f"{called} has no checkpoint with a replay in it: wait for its first one")
    return _as_of_start(saved["components"]["replay"])


def check_same(config: Config, kind: str, run: Path, matters: Callable[[str], bool]) -> Path | None:
    """Return the latest checkpoint of the run that `KIND.start` names, if it has one yet.

    Raises `UserError` if it is no run, has another thing of that kind, or has other values of keys that matter.
    """
    called, name = f"{kind}.start = '{run}'", getattr(config, kind).name
    if not (run / "config.toml").is_file():
        raise UserError(f"{called} is no run: it names the folder that 'envrl train --run' made")
    other = load_run(run)
    theirs = getattr(other, kind).name
    if theirs != name:
        raise UserError(f"{called} has the {kind} '{theirs}', and this run '{name}': they keep different things")
    if other.env.name != config.env.name:
        raise UserError(f"{called} played the world '{other.env.name}', and this run plays '{config.env.name}'")
    if changed := [key for key in config_differences(other, config) if matters(key)]:
        raise UserError(
            f"{called} has episodes that this run could not have played (other values of {', '.join(changed)}): set "
            f"them alike, or leave {kind}.start out"
        )
    return latest_checkpoint(run / "checkpoints")


def texts_depend_on(key: str) -> bool:
    """Return whether the texts of the world's episodes depend on a key."""
    return key.startswith("env.") and key not in _OTHERWISE


def _check_tokenizer(config: Config, vocabulary: Mapping[str, int]) -> None:
    """Raise `UserError` if the episodes of the run `replay.start` were written with another tokenizer than this one."""
    theirs = _vocabulary(Path(config.replay.start) / "checkpoints" / "latest" / "tokenizer.json")
    if theirs != vocabulary:
        apart = sum(vocabulary.get(token) != number for token, number in theirs.items())
        raise UserError(
            f"replay.start = '{config.replay.start}' has episodes in the tokens of another tokenizer ({apart:,} of its "
            f"{len(theirs):,} tokens are others here): begin with the same model, or share its warm start "
            "(warm_start.path)"
        )


def _vocabulary(file: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)


def _matters(key: str) -> bool:
    section, _, name = key.partition(".")
    if section == "rollout":
        return name not in _ROLLOUT
    return texts_depend_on(key)


def _as_of_start(state: Any) -> Any:
    """Return a saved state with version 0 for every episode and group in it."""
    match state:
        case dict():
            return {key: 0 if key == "policy_version" else _as_of_start(value) for key, value in state.items()}
        case list():
            return [_as_of_start(value) for value in state]
    return state
