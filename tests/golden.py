"""Four short runs whose every figure is written down: what a change of the code's shape must not change.

`python tests/golden.py` writes tests/golden.json anew; a commit that does so says why the numbers moved.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from envrl.cli.main import main

FILE = Path(__file__).with_name("golden.json")

SHORT = {
    "env.max_steps": 10,
    "env.subgoal_reward": 0.3,
    "model.hidden_size": 64,
    "model.layers": 3,
    "train.threads": 1,
    "train.updates": 3,
    "train.trajectories": 0,
    "warm_start.demonstrations": 80,
    "warm_start.epochs": 2,
    "warm_start.held_out": 4,
    "rollout.tasks": 3,
    "rollout.group_size": 4,
    "rollout.max_steps": 10,
    "eval.every": 2,
    "eval.split": "valid_seen",
    "eval.episodes": 2,
    "eval.final": 4,
    "eval.free_episodes": 1,
    "eval.probe_episodes": 1,
    "checkpoint.every": 10,
}

CHAT = {"model.chat_template": "chatml", "rollout.format": "action", "rollout.repeat_task": "false"}

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("household-demo", {}),
    "chat": ("household-demo", CHAT | {"seed": 1}),
    "steps": (
        "household-demo",
        {
            "rollout.layout": "steps",
            "rollout.repeat_task": "false",
            "objective.estimator": "gigpo",
            "auxiliary.echo.weight": 0,
            "auxiliary.state.weight": 0.1,
            "auxiliary.state.fraction": 0.2,
            "warm_start.auxiliary.echo.weight": 0,
            "warm_start.auxiliary.state.weight": 0.5,
            "warm_start.auxiliary.state.schedule": "constant",
            "warm_start.auxiliary.state.fraction": 0.15,
            "train.epochs": 2,
            "objective.kl_weight": 0.01,
        },
    ),
    "lora": ("household-demo", {"model.lora_rank": 4, "warm_start.optimizer": "adamw"}),
}
"""The recipe of each run, and what is changed besides `SHORT`; `lora` adapts the model that `demo` has imitated."""


def play(name: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Make a run in FOLDER/NAME, `demo` first; return its lines without what two equal runs may differ in."""
    recipe, settings = RUNS[name]
    settings = SHORT | settings
    if name == "lora":
        settings["model.path"] = str(folder / "demo" / "warm_start")
    arguments = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    assert main(["train", recipe, "--run", str(folder / name), *arguments]) == 0
    return {
        kind: [_figures(json.loads(line)) for line in (folder / name / f"{kind}.jsonl").read_text().splitlines()]
        for kind in ("warm_start", "metrics", "eval")
    }


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("seconds", "rate", "memory")}


def kernels() -> str:
    """Return a hash of what this processor's kernels make of fixed numbers: equal where runs are equal bit for bit."""
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(96, 200, generator=generator) for _ in range(2))
    found = [one @ other.T, (one @ other.T).softmax(-1), torch.nn.functional.silu(one), other.log_softmax(-1).sum(-1)]
    return hashlib.sha256(b"".join(each.numpy().tobytes() for each in found)).hexdigest()[:16]


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        torch.set_num_threads(1)
        runs = {name: play(name, Path(scratch)) for name in RUNS}
    FILE.write_text(json.dumps({"kernels": kernels(), "runs": runs}, indent=1) + "\n")
