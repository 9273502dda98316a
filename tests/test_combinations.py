"""EnvRL's losses beside other methods, by recipe alone: a few updates on a small world, and a resume bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from envrl.cli.main import main
from moments import essence
from test_replays import SMALL

OF_RECIPE: dict[str, dict[str, object]] = {
    "gigpo": {},
    "hgpo": {},
    "graphgpo": {},
    "dapo": {"curriculum.dynamic.rounds": 2, "train.epochs": 1},
}


@pytest.mark.parametrize("name", OF_RECIPE)
def test_a_recipe_runs_and_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    settings = SMALL | OF_RECIPE[name] | {"train.updates": 4}
    arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["train", f"alfworld-envrl-{name}", *arguments, "--run", str(whole)]) == 0
    shutil.copytree(whole, cut, symlinks=True)
    for update in (3, 4):
        shutil.rmtree(cut / "checkpoints" / f"step-{update:06d}")
    assert main(["train", f"alfworld-envrl-{name}", *arguments, "--run", str(cut), "--resume"]) == 0
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert sum(line["rows/policy"] for line in lines) > 0
    assert all(line["rows/state"] > 0 and line["rows/inverse"] > 0 for line in lines)
    assert essence(cut) == essence(whole)
    if name == "dapo":
        assert all(line["curriculum/rounds"] <= 2 and "reward/overlong" in line for line in lines)
