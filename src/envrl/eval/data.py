"""Record the fingerprints of a run's downloaded data in `data.json`, and warn if it is played on other data."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from envrl.envs.protocol import HasFingerprint, TextEnv
from envrl.errors import UserError

FILE = "data.json"


def data_file(name: str, env: TextEnv, splits: Sequence[str]) -> Mapping[str, str]:
    """Return {file name: text} of `data.json`: the world and a SHA-256 per split; empty for a world without data."""
    if not isinstance(env, HasFingerprint):
        return {}
    record = {"env": name, "splits": {split: env.fingerprint(split) for split in dict.fromkeys(splits)}}
    return {FILE: json.dumps(record, indent=1, ensure_ascii=False) + "\n"}


def warn_of_other_data(run: Path, name: str, env: TextEnv, splits: Sequence[str]) -> None:
    """Warn in one line if the data of the splits to play differs from the run's data.

    If the run has recorded none of these splits, all recorded ones are compared. Nothing is compared for another world,
    or without `data.json`. Raises `UserError` if that file cannot be read.
    """
    if not isinstance(env, HasFingerprint) or not (run / FILE).is_file():
        return
    try:
        record = json.loads((run / FILE).read_bytes())
        known = {str(split): str(digest) for split, digest in record["splits"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{run / FILE} is not readable: restore it, or remove it") from error
    if record.get("env") != name:
        return
    compared = [split for split in dict.fromkeys(splits) if split in known] or list(known)
    other = [split for split in compared if env.fingerprint(split) != known[split]]
    if other:
        warnings.warn(
            f"the data of '{name}' is not what '{run}' was made with: other content in {', '.join(other)}", stacklevel=2
        )
