"""`envrl train RECIPE --quick`: any recipe in small, marked wherever its figures could be taken for something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boxes import tiny
from envrl.cli.main import main
from envrl.config.check import check_together
from envrl.config.load import config_differences, dump_config, flat_values, load_recipe
from envrl.config.quick import LARGEST, OF_METHODS, quick
from envrl.config.recipes_index import recipe_names
from envrl.report.summary import summarize
from view_runs import data_of


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_lowered_to_a_whole_configuration(name: str) -> None:
    full = load_recipe(name)
    small = quick(full)
    check_together(small)
    before, after = flat_values(full), flat_values(small)
    method = full.warm_start.method
    of_method = {f"warm_start.{method}.{key}": largest for key, largest in OF_METHODS.get(method, {}).items()}
    assert set(config_differences(full, small)) <= {"quick", *LARGEST, *of_method}
    assert all(small.settings("warm_start")[key.split(".")[2]] <= largest for key, largest in of_method.items())
    assert after["quick"] is True
    for key, largest in LARGEST.items():
        assert after[key] == min(largest, before[key]) or (not before[key] and after[key] == largest)
    assert 0 < small.rollout.max_steps <= small.env.max_steps
    assert small.eval.final == 1
    assert quick(small) == small


def test_what_is_lower_already_stays() -> None:
    config = tiny(env={"max_steps": 3}, train={"updates": 1}, warm_start={"demonstrations": 0, "held_out": 0})
    small = quick(config)
    assert (small.env.max_steps, small.rollout.max_steps, small.train.updates) == (3, 3, 1)
    assert (small.warm_start.demonstrations, small.warm_start.held_out) == (0, 0)


def test_a_quick_run_says_so_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Path("mine.toml")
    recipe.write_text(dump_config(tiny()))
    assert main(["train", "mine.toml", "--quick", "--train.updates", "3"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("quick run, its figures mean nothing: warm_start.demonstrations 8 -> 2, ")
    assert "train.updates" not in said.splitlines()[0]
    run = Path("runs/mine-quick")
    stored = load_recipe(str(run / "config.toml"))
    assert (stored.quick, stored.train.updates, stored.rollout.tasks) == (True, 3, 1)
    evaluated = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert [(r["update"], r["episodes"]) for r in evaluated] == [(0, 1), (0, 1), (3, 1), (3, 1)]
    assert main(["train", "mine.toml", "--quick", "--train.updates", "3", "--run", str(run), "--resume"]) == 0
    assert main(["train", str(run / "config.toml"), "--run", str(run), "--resume"]) == 0
    assert summarize(run).startswith("a quick run: its figures mean nothing\n")
    assert main(["report", str(run)]) == 0
    assert data_of((run / "report.html").read_text())["overview"]["quick"] is True
    assert main(["train", "mine.toml", "--train.updates", "0"]) == 0
    capsys.readouterr()
    assert main(["compare", "runs/mine", str(run)]) == 2
    refusal = f"{run} is a quick run, whose figures mean nothing beside those of runs/mine: leave it out"
    assert refusal in capsys.readouterr().err
    assert main(["compare", str(run)]) == 0
    assert main(["report", "runs/mine"]) == 0
    assert data_of(Path("runs/mine/report.html").read_text())["overview"]["quick"] is False
