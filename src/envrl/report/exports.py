"""The recorded episodes of a run for other programs: JSON lines with a schema, a Hugging Face dataset, logs of Inspect.

All three hold every episode once. Its form is that of `trajectories/`, which `episodes.schema.json` describes. Every
key is there, null where a run did not record it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from envrl.errors import RunError, UserError
from envrl.report.episode import probability_of, steps_of
from envrl.report.episode_index import EpisodeFile, Row
from envrl.report.read import number
from envrl.report.store import RunStore

SCHEMA = "episodes.schema.json"
Record = Mapping[str, Any]

_STEP_TYPES = {
    "observation": "string",
    "told": "string",
    "action": "string",
    "next_observation": "string",
    "reward": "float64",
    "admissible": "bool",
    "response": "string",
    "fault": "string",
    "imagined": "bool",
    "probability": "float64",
    "token_texts": ["string"],
    "token_ids": ["int64"],
    "logprobs": ["float64"],
    "entropies": ["float64"],
    "advantage": "float64",
    "advantage_parts": {"episode": "float64", "step": "float64"},
    "state_nll": "float64",
    "predicted_observation": "string",
    "predicted_action": "string",
}
_TYPES = {
    "run": "string",
    "update": "int64",
    "split": "string",
    "free": "bool",
    "task": "string",
    "kind": "string",
    "goal": "string",
    "member": "int64",
    "success": "bool",
    "stop_reason": "string",
    "failure": "string",
    "return": "float64",
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema of an episode."""
    return json.loads(files("envrl.report").joinpath(SCHEMA).read_text("utf-8"))


def episodes(store: RunStore) -> Iterator[dict[str, Any]]:
    """Yield every recorded episode once: training first, then evaluations, each in the order of updates."""
    for file, row in store.index.rows():
        yield _episode(store, file, row)


def export_jsonl(run: Path, folder: Path) -> int:
    """Write `episodes.jsonl` and its schema into a new folder; return the number of episodes."""
    with new_folder(folder) as aside:
        (aside / SCHEMA).write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")
        return _write_lines(aside / "episodes.jsonl", episodes(RunStore(run)))


def export_dataset(run: Path, folder: Path) -> int:
    """Write a new folder that `datasets.load_dataset` loads; return the number of episodes.

    Training is the split `train`; each split that was evaluated is one of its own. The card names the columns' types,
    so that a column without values has the right one.
    """
    store = RunStore(run)
    by_split: dict[str, list[dict[str, Any]]] = {}
    for episode in episodes(store):
        by_split.setdefault(_split_name(episode["split"]), []).append(episode)
    if not by_split:
        raise UserError(f"{run} holds no episode yet, so there is nothing to export")
    with new_folder(folder) as aside:
        (aside / "data").mkdir()
        count = sum(_write_lines(aside / "data" / f"{split}.jsonl", made) for split, made in by_split.items())
        (aside / "README.md").write_text(_card(run.resolve().name, list(by_split)), encoding="utf-8")
        return count


def export_inspect(run: Path, folder: Path) -> int:
    """Write a log of Inspect for each file of episodes into a new folder; return the number of episodes."""
    from envrl.report.inspect_logs import write_logs

    store = RunStore(run)
    with new_folder(folder) as aside:
        return write_logs(store, episodes(store), aside)


EXPORTS: dict[str, Callable[[Path, Path], int]] = {
    "jsonl": export_jsonl,
    "datasets": export_dataset,
    "inspect": export_inspect,
}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder that gets its name when all is written; raises `UserError` where it cannot be made."""
    if folder.exists():
        raise UserError(f"'{folder}' is there already; name a folder that is not")
    if not folder.parent.is_dir():
        raise UserError(f"'{folder}' cannot be made: there is no folder {folder.parent}")
    aside = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        yield aside
        aside.rename(folder)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _episode(store: RunStore, file: EpisodeFile, row: Row) -> dict[str, Any]:
    record = store.index.read(file.name, row.offset)
    return {
        "run": store.path.resolve().name,
        "update": file.update,
        "split": file.split,
        "free": row.free,
        "task": row.task,
        "kind": row.kind or None,
        "goal": row.goal or None,
        "member": row.member,
        "success": row.success,
        "stop_reason": str(record.get("stop_reason", "")),
        "failure": row.failure or None,
        "return": row.score,
        "steps": [_step(step) for step in steps_of(record)],
    }


def _step(step: Record) -> dict[str, Any]:
    values = {name: _value(step.get(name), kind) for name, kind in _STEP_TYPES.items()}
    values |= {name: str(step.get(name, "")) for name in ("observation", "action", "next_observation")}
    return values | {"probability": probability_of(step), "token_ids": _value(step.get("tokens"), ["int64"])}


def _value(value: Any, kind: Any) -> Any:
    """Return a value where it is of its column's kind, else None; of a list with others among them nothing is left."""
    if isinstance(kind, list):
        values = [_value(each, kind[0]) for each in value] if isinstance(value, list) else []
        return values if values and None not in values else None
    if isinstance(kind, dict):
        return {name: _value(value.get(name), each) for name, each in kind.items()} if isinstance(value, dict) else None
    if kind == "float64":
        return number({"": value}, "")
    wanted = {"string": str, "bool": bool, "int64": int}[kind]
    return value if isinstance(value, wanted) and isinstance(value, bool) == (kind == "bool") else None


def _write_lines(path: Path, records: Iterable[Record]) -> int:
    count = 0
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def _split_name(split: str | None) -> str:
    """Return a name as datasets take it, of word characters alone."""
    if split is None:
        return "train"
    name = re.sub(r"\W", "_", split)
    return f"eval_{name}" if name == "train" else name


def _card(run: str, splits: list[str]) -> str:
    """Return the dataset's card, whose head says where each split lies and what type each column has."""
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        lines += [f"  - split: {split}", f"    path: data/{split}.jsonl"]
    lines += ["dataset_info:", "  features:", *_features(_TYPES, "  ")]
    lines += ["  - name: steps", "    list:", *_features(_STEP_TYPES, "    "), "---"]
    told = f"Episodes of the run {json.dumps(run)}, written by `envrl export --as datasets`. `docs/run-directory.md` of"
    return "\n".join([*lines, "", told, "envrl describes the columns.", ""])


def _features(types: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, kind in types.items():
        yield f"{indent}- name: {name}"
        if isinstance(kind, dict):
            yield f"{indent}  struct:"
            yield from _features(kind, f"{indent}  ")
        elif isinstance(kind, list):
            yield f"{indent}  list: {kind[0]}"
        else:
            yield f"{indent}  dtype: {kind}"
