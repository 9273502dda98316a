"""A process of tests/test_sharded.py: three updates of the same rows, or a warm start; the first one writes it down.

sharded_worker.py ENGINE FOLDER CASE …
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asides import ASIDES
from boxes import Boxes, tiny
from envrl import ranks
from envrl.config.schema import Config
from envrl.engine import local, sharded
from envrl.engine.optimizer import adamw
from envrl.errors import Interrupted
from envrl.imitation import warm_start
from envrl.models.adapters import add_adapter
from envrl.models.forward import state_width
from envrl.models.heads import new_head
from envrl.models.load import LanguageModel, build_model, load_model, load_path, load_policy, save_model
from envrl.registry import find
from envrl.samples.rows import counted_term
from envrl.trainer.regularizing import Regularizers
from envrl.types import Row
from test_adapters import make_base
from test_graphs import qwen
from test_update import AUXILIARY, VARIANTS, exact, make_model, make_rows

TRAIN = {"micro_batch_tokens": 600, "epochs": 2, "learning_rate": 1e-3, "max_grad_norm": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "token_mean": {**VARIANTS["token_mean"], "train": {"checkpointing": True}},
    "sequence_mean": {**VARIANTS["sequence_mean"], "train": {"minibatches": 2}},
    "gspo": {**VARIANTS["gspo"], **VARIANTS["in_pass"]},
    "cispo": {**VARIANTS["free"], **VARIANTS["cispo"]},
    "clip_cov": {**VARIANTS["steps"], **VARIANTS["clip_cov"]},
    "epo": {**VARIANTS["epo"], "objective": {"kl_weight": 0.05, "entropy_weight": 0.01}},
    "heads": {"auxiliary": AUXILIARY},
    "untied": {"auxiliary": AUXILIARY},
    "dynamics": {"auxiliary": {"paw": {"weight": 0.2}, "uishift": {"weight": 0.1}}},
    "few": {},
    "adapter": {"auxiliary": AUXILIARY, "objective": {"kl_weight": 0.05}},
}
"""Every loss, each with another setting; `few`: fewer rows than processes; `heads`: a value head in some of the rows;
`untied`: an output of its own."""

STEPS: dict[str, Any] = {"demonstrations": 8, "batch": 3, "epochs": 2, "held_out": 3, "every": 4}


def method(name: str, **settings: float) -> dict[str, Any]:
    """Return the changes for a warm start by another method than imitation."""
    owned = {f"warm_start.{name}.{key}": value for key, value in settings.items()}
    return {"warm_start": {**STEPS, "method": name}, "owned": owned}


WARM: dict[str, dict[str, Any]] = {
    "warm": {"warm_auxiliary": AUXILIARY, "warm_start": STEPS},
    "warm muon": {"warm_start": {**STEPS, "optimizer": "muon"}},
    "warm adapter": {"warm_start": STEPS, "model": {"lora_rank": 4}},
    "warm dagger": method("dagger", episodes=5, rounds=1, beta=0.5),
    "warm rejection": method("rejection", tasks=5, episodes=2),
    "warm early_experience": method("early_experience", states=7),
    "warm self_reflection": {**method("self_reflection", states=7), **ASIDES},
    "warm writes": {
        "warm_auxiliary": {"aawm": {"weight": 0.2, "states": 2}},
        "warm_start": STEPS,
        "model": {"chat_template": "chatml", "vocabulary": 600, "context": 1024},
        "rollout": {"format": "action"},
    },
}
"""Six steps of warm start or more, saved after every fourth; the held-out loss is measured after the third."""


def config_of(case: str) -> Config:
    changed = CASES[case]
    few = {"tasks": 2, "group_size": 3, **changed.get("rollout", {})}
    return tiny(**{**changed, "rollout": few, "train": {**TRAIN, **changed.get("train", {})}})


def made_base(folder: Path) -> Path:
    """Return the folder of the base of adapters."""
    if ranks.is_first() and not (folder / "base").exists():
        make_base(folder / "base")
    ranks.wait()
    return folder / "base"


def model_of(case: str, config: Config, folder: Path = Path()) -> LanguageModel:
    if case == "adapter":
        model = load_model(made_base(folder))
        add_adapter(model.network, folder / "base", 4, 8.0, config.seed)
        return model
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
    return [bytes_here(inner.model.parameters()), bytes_here(inner.optimizer.tensors().values())]


def skips(made: Any, model: LanguageModel, rows: list[Row]) -> list[float]:
    """Have one row's loss be infinite; return whether the step was left out, and by how much weights have changed."""
    (term,) = rows[0].terms
    spoiled = replace(rows[0], terms=(replace(term, weights_T=np.full_like(term.weights_T, np.inf)),))
    before = [weight.detach().clone() for weight in model.parameters()]
    figures = made.step([spoiled, *rows[1:]], {}, 4)
    moved = (float((now - then).abs().max()) for now, then in zip(model.parameters(), before, strict=True))
    return [figures["skipped"], float(made.skips), max(moved)]


def bytes_here(tensors: Iterable[Any]) -> int:
    """Return the bytes that this process holds of tensors that are not numbers."""
    return sum((t.to_local() if hasattr(t, "to_local") else t).nbytes for t in tensors if t.ndim)


def work(case: str, folder: Path, engine: str) -> None:
    config = config_of(case)
    model = model_of(case, config, folder)
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
    regularizers = Regularizers(config)
    made = find("engine", engine).target(config, model, optimizer, run, lambda: None, print, regularizers)
    weights = {each.name: 0.2 for each in config.auxiliaries()} | {"value": 0.5} | dict.fromkeys(regularizers, 0.5)
    updates = []
    for number in (1, 2, 3):
        updates.append(made.step(rows, weights, number))
        regularizers.observe(updates[-1])
    tables = {"logprobs": made.logprobs(rows)}
    if config.objective.kl_weight:
        tables["reference"] = made.reference_logprobs(rows)
    if case == "heads":
        tables["values"] = made.values(rows, "value")
    moments = made.state()
    held = ranks.gather(held_bytes(made))
    skipped = ranks.gather(skips(made, model, rows)) if case == "few" else []
    if ranks.is_first():
        name = f"{case}-{ranks.count() if engine == 'sharded' else 0}"
        plain = {table: {origin: v.tolist() for origin, v in found.items()} for table, found in tables.items()}
        (folder / f"{name}.json").write_text(
            json.dumps({"updates": updates, "tables": plain, "held": held, "skipped": skipped})
        )
        weights = {f"weight {n}": p.detach().numpy() for n, p in model.named_parameters()}
        np.savez(folder / f"{name}.npz", **weights, **{f"moment {n}": t.numpy() for n, t in moments.items()})


def never() -> None: ...


def stage_of(config: Config, run: Path, poll: Callable[[], None] = never) -> Any:
    """Return a warm start in a folder of the first process's."""
    if ranks.is_first():
        run.mkdir(parents=True, exist_ok=True)
    return warm_start._Stage(config, run, Boxes, warm_start.Hooks(poll, lambda *_: None))


def imitate(case: str, folder: Path) -> None:
    """Imitate in float64; write down what each process holds of weights, moments and best weights."""
    changed = WARM[case]
    if "lora_rank" in changed.get("model", ()):
        changed = {**changed, "model": {**changed["model"], "path": str(made_base(folder))}}
    for name, make in {"build_model": build_model, "load_path": load_path}.items():

        def made(*asked: Any, make: Callable[..., LanguageModel] = make) -> LanguageModel:
            model = make(*asked)
            exact(model)
            return model

        setattr(warm_start, name, made)
    stage = stage_of(tiny(**changed), folder / f"{case}-{ranks.count()}")
    stage.run()
    parts = (stage.model.parameters(), stage.optimizer.tensors().values(), stage.best_weights.values())
    held = ranks.gather([bytes_here(part) for part in parts])
    if ranks.is_first():
        (folder / f"{case}-{ranks.count()}.json").write_text(json.dumps(held))
    warm_start.build_model, warm_start.load_path = build_model, load_path


def imitate_again(folder: Path) -> None:
    """In fp32: imitate without a break, and with one, which the last process alone asks for before its fifth step.

    A copy of what is saved then goes on in one process, `cut-1`.
    """
    config, calls = tiny(**WARM["warm"]), count(1)

    def poll() -> None:
        if ranks.number() == ranks.count() - 1 and next(calls) == 5:
            raise Interrupted

    if (folder / "cut-1").exists():
        return stage_of(config, folder / "cut-1").run()
    stage_of(config, folder / f"whole-{ranks.count()}").run()
    if ranks.count() == 1:
        return None
    try:
        stage_of(config, folder / "cut-2", poll).run()
    except Interrupted:
        if ranks.is_first():
            shutil.copytree(folder / "cut-2", folder / "cut-1", symlinks=True)
        ranks.wait()
        stage_of(config, folder / "cut-2").run()


if __name__ == "__main__":
    engine, folder, *cases = sys.argv[1:]
    with ranks.joined("cpu", alone=engine == "sharded"):
        for case in cases:
            if case == "again":
                imitate_again(Path(folder))
            elif case in WARM:
                imitate(case, Path(folder))
            else:
                work(case, Path(folder), engine)
