"""Save groups of episodes exactly as JSON, so that a replay's groups survive a checkpoint."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from envrl.errors import RunError
from envrl.types import TrajectoryGroup

_GROUP = "$group"


def to_json(state: Any) -> Any:
    """Return a state (JSON that may hold `TrajectoryGroup`s anywhere) as plain JSON.

    Values in an observation's `info` that are not JSON become None. Raises `RunError` for any other non-JSON value.
    """
    match state:
        case TrajectoryGroup():
            return {_GROUP: msgspec.to_builtins(state, enc_hook=_plain)}
        case dict():
            return {str(key): to_json(value) for key, value in state.items()}
        case list() | tuple():
            return [to_json(value) for value in state]
        case None | bool() | int() | float() | str():
            return state
    raise RunError(f"a state that is saved holds JSON and groups of episodes, not {type(state).__name__}")


def from_json(state: Any) -> Any:
    """Return the state that `to_json` encoded; tuples come back as lists."""
    match state:
        case {"$group": group}:
            return msgspec.convert(group, TrajectoryGroup, dec_hook=_array, strict=False)
        case dict():
            return {key: from_json(value) for key, value in state.items()}
        case list():
            return [from_json(value) for value in state]
    return state


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None


def _array(kind: Any, value: Any) -> Any:
    return np.array(value, dtype=np.int32)
