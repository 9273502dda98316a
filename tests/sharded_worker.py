"""A process of tests/test_sharded.py: three updates of the same rows, in float64; the first one writes them down.

sharded_worker.py ENGINE FOLDER CASE …
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxes import tiny
from envrl import ranks
from envrl.config.schema import Config
from envrl.engine import local, sharded
from envrl.engine.optimizer import adamw
from envrl.models.forward import state_width
from envrl.models.heads import new_head
from envrl.models.load import LanguageModel, load_policy, save_model
from envrl.registry import find
from envrl.samples.rows import counted_term
from envrl.types import Row
from test_graphs import qwen
from test_update import AUXILIARY, VARIANTS, exact, make_model, make_rows

TRAIN = {"micro_batch_tokens": 300, "epochs": 2, "learning_rate": 1e-3, "max_grad_norm": 0.5}
CASES: dict[str, dict[str, Any]] = {
    **VARIANTS,
    "sequence_mean": {**VARIANTS["sequence_mean"], "train": {"minibatches": 2}},
    "kl": {"auxiliary": AUXILIARY, "objective": {"kl_weight": 0.05, "entropy_weight": 0.01}},
    "recomputed": {"auxiliary": AUXILIARY, "train": {"checkpointing": True}},
    "heads": {"auxiliary": AUXILIARY},
    "untied": {"auxiliary": AUXILIARY},
    "few": {},
}
"""`few`: fewer rows than processes; `heads`: a value head in some of the rows; `untied`: an output of its own."""


def config_of(case: str) -> Config:
    changed = CASES[case]
    few = {"tasks": 2, "group_size": 3, **changed.get("rollout", {})}
    return tiny(**{**changed, "rollout": few, "train": {**TRAIN, **changed.get("train", {})}})


def model_of(case: str, config: Config) -> LanguageModel:
    model = qwen() if case == "untied" else make_model(config)
    if case == "untied":
        model.network.config.tie_word_embeddings = False
        output = model.network.get_output_embeddings()
        output.weight = torch.nn.Parameter(output.weight.detach().clone() * 0.9)  # type: ignore[union-attr]
    if case == "heads":
        model.heads["value"] = new_head(state_width(model.network), model.device)
    return model


def rows_of(case: str, model: LanguageModel, config: Config) -> list[Row]:
    rows = make_rows(model, config)
    if case == "few":
        return sorted(rows, key=lambda row: len(row.token_ids))[-3:]
    if case == "heads":
        row = max(rows, key=lambda row: len(row.token_ids))
        returns = np.linspace(0.0, 1.0, 5, dtype=np.float32)
        rows.append(Row(row.token_ids, (counted_term("value", range(3, 8), streams={"returns": returns}),), "valued"))
    return rows


def exact_policy(folder: Path, config: Config) -> LanguageModel:
    model = load_policy(folder, config)
    exact(model)
    return model


def held_bytes(engine: Any) -> list[int]:
    """Return the bytes that this process holds of what is trained: weights, and moments."""
    inner = getattr(engine, "_inner", engine)
    local = lambda t: t.to_local() if hasattr(t, "to_local") else t  # noqa: E731
    weights = sum(local(p).nbytes for p in inner.model.parameters())
    return [weights, sum(local(t).nbytes for t in inner.optimizer.tensors().values() if t.ndim)]


def work(case: str, folder: Path, engine: str) -> None:
    config = config_of(case)
    model = model_of(case, config)
    rows = rows_of(case, model, config)
    run = folder / f"{case}-{engine}-{ranks.count()}"
    if ranks.is_first():
        (run / "warm_start").mkdir(parents=True)
        save_model(model, run / "warm_start")
    ranks.wait()
    exact(model)
    model.heads.double()
    local.load_policy = sharded.load_policy = exact_policy  # type: ignore[attr-defined]
    optimizer = adamw(model, config.train.learning_rate, config.train.weight_decay)
    made = find("engine", engine).target(config, model, optimizer, run, lambda: None, print)
    weights = {each.name: 0.2 for each in config.auxiliaries()} | {"value": 0.5}
    updates = [made.step(rows, weights, number) for number in (1, 2, 3)]
    tables = {"logprobs": made.logprobs(rows)}
    if case == "heads":
        tables["values"] = made.values(rows, "value")
    moments = made.state()
    held = ranks.gather(held_bytes(made))
    if ranks.is_first():
        name = f"{case}-{ranks.count() if engine == 'sharded' else 0}"
        plain = {table: {origin: v.tolist() for origin, v in found.items()} for table, found in tables.items()}
        (folder / f"{name}.json").write_text(json.dumps({"updates": updates, "tables": plain, "held": held}))
        weights = {f"weight {n}": p.detach().numpy() for n, p in model.named_parameters()}
        np.savez(folder / f"{name}.npz", **weights, **{f"moment {n}": t.numpy() for n, t in moments.items()})


if __name__ == "__main__":
    engine, folder, *cases = sys.argv[1:]
    with ranks.joined("cpu", alone=engine == "sharded"):
        for case in cases:
            work(case, Path(folder), engine)
