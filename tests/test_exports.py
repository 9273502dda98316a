"""Episodes for other programs: the schema holds for every line, and their own libraries read what is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from envrl.cli.main import main
from envrl.report.exports import export_dataset, schema
from view_runs import FIGURES, episode, kept, write_lines, write_run

CHECK = Draft202012Validator(schema())


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo")


def exported(run: Path, folder: Path) -> list[dict[str, Any]]:
    assert main(["export", str(run), str(folder), "--as", "jsonl"]) == 0
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_schema_is_one_and_holds_for_what_a_run_writes(run: Path) -> None:
    Draft202012Validator.check_schema(schema())
    for path in (run / "trajectories").iterdir():
        for line in path.read_text().splitlines():
            CHECK.validate(json.loads(line))
    for wrong in ({"action": 3}, {"probability": 1.5}, {"logprobs": [None]}, {"nosuch": 1}):
        bad = episode("a", ["look"])
        bad["steps"][0] |= wrong
        with pytest.raises(ValidationError):
            CHECK.validate(bad)
    with pytest.raises(ValidationError):
        CHECK.validate(episode("a", ["look"], stop_reason="tired"))


def test_every_episode_is_exported_once_in_one_form(run: Path, tmp_path: Path) -> None:
    made = exported(run, tmp_path / "out")
    assert len(made) == 10
    keys = set(made[0]), set(made[0]["steps"][0])
    for each in made:
        CHECK.validate(each)
        assert (set(each), *(set(step) for step in each["steps"][:1])) == keys, "every key is there"
    assert json.loads((tmp_path / "out" / "episodes.schema.json").read_text()) == schema()
    told = next(each for each in made if each["update"] == 20 and each["task"] == "task/1")
    last = told["steps"][-1]
    assert {name: last[name] for name in FIGURES} == FIGURES
    from_eval = next(each for each in made if each["update"] == 0)["steps"][0]
    assert from_eval["next_observation"] == "You did: go to shelf 1."
    assert (from_eval["token_ids"], from_eval["token_texts"]) == ([5, 2], None)
    assert from_eval["logprobs"] == [-0.3, -0.2]
    assert from_eval["probability"] == pytest.approx(0.6065, abs=1e-4)
    assert [(each["failure"], each["free"]) for each in made if each["task"] == "task/3"] == [
        ("time", False),
        ("time", True),
    ]


def test_strange_values_become_null(run: Path, tmp_path: Path) -> None:
    strange = episode("x", ["look"], kind="", **{"return": float("inf")})
    strange["steps"][0] |= {
        "logprobs": [1.0, "x"],
        "admissible": 1,
        "advantage_parts": 3,
        "token_texts": [],
        "reward": True,
    }
    write_lines(run / "trajectories" / "update-000010.jsonl", [strange])
    made = exported(run, tmp_path / "out")[0]
    CHECK.validate(made)
    assert (made["kind"], made["return"]) == (None, None)
    step = made["steps"][0]
    assert [step[name] for name in ("logprobs", "admissible", "advantage_parts", "token_texts", "reward")] == [None] * 5


def test_datasets_loads_an_export(run: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: make stacks")
    write_lines(run / "eval" / "000020-train.jsonl", [kept("task/4", ["look"])])
    assert main(["export", str(run), str(tmp_path / "out"), "--as", "datasets"]) == 0
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 4, "valid_seen": 6, "eval_train": 1}
    last = loaded["valid_seen"].filter(lambda each: each["update"] == 20 and each["success"])[0]["steps"][-1]
    assert {name: last[name] for name in FIGURES} == FIGURES
    empty = loaded["eval_train"].features["steps"]
    assert empty == loaded["valid_seen"].features["steps"], "also where a column has no value"


def test_a_run_without_episodes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("seed = 1\n")
    write_lines(tmp_path / "run" / "metrics.jsonl", [{"update": 1}])
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--as", "datasets"]) == 2
    assert "holds no episode yet" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nosuch", "out", "--as", "jsonl"], "nosuch is not a run: there is no such directory"),
        (["demo", "demo", "--as", "jsonl"], "'demo' is there already"),
        (["demo", "no/out", "--as", "jsonl"], "there is no folder no"),
        (["demo", "out", "--as", "dataset"], "--as dataset is no form of an export; did you mean 'datasets'?"),
        (["demo", "out", "--as", "jsonl", "--model.path", "x"], "--model.path is for the model"),
    ],
)
def test_what_cannot_be_exported(
    run: Path,
    arguments: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(["export", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert sorted(path.name for path in run.parent.iterdir()) == ["demo"]


def test_a_half_written_export_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envrl.report.exports._card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_dataset(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo"]


def test_inspect_reads_the_logs(run: Path, tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed: make stacks")
    assert main(["export", str(run), str(tmp_path / "logs"), "--as", "inspect"]) == 0
    found = {Path(info.name).name.split("_", 1)[1]: info.name for info in log.list_eval_logs(str(tmp_path / "logs"))}
    names = ["train_000010", "valid-seen-free_000020", "valid-seen_000000", "valid-seen_000020"]
    assert sorted(found) == [f"{name}.json" for name in names]
    read = log.read_eval_log(found["valid-seen_000020.json"])
    assert (read.status, read.eval.task, read.results.total_samples) == ("success", "household/valid_seen", 2)
    assert read.results.scores[0].metrics["mean"].value == 0.5
    won = next(sample for sample in read.samples if sample.scores["success"].value == 1.0)
    assert [message.role for message in won.messages] == ["user", "assistant"] * 3 + ["user"]
    assert won.messages[-2].text == "move cd 1 to desk 1"
    assert won.messages[-2].metadata["advantage"] == 0.7
    lost = next(sample for sample in read.samples if sample.scores["success"].value == 0.0)
    assert lost.scores["success"].explanation == "place"


def test_inspect_that_is_not_installed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    assert main(["export", str(run), str(tmp_path / "logs"), "--as", "inspect"]) == 2
    assert "pip install 'envrl[inspect]'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo"]
