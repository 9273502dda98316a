"""Records of runs: figures in columns, the outcome of every game, formats of other versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from envrl.cli.main import main
from envrl.report import results
from envrl.report.results import columns, outcomes_of, read_result, rows

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two updates over three games, of which it won one before and two after; its start is another run's."""
    start, folder = tmp_path / "start", tmp_path / "mine"
    for each, path in ((start, ""), (folder, f"{start}/warm_start")):
        (each / "eval").mkdir(parents=True)
        (each / "config.toml").write_text(
            f'[env]\nname = "boxes"\n[warm_start]\npath = "{path}"\n[train]\nupdates = 2\n'
        )
    (folder / "data.json").write_text('{"env": "boxes", "splits": {"valid": "abc"}}')
    shared: dict[str, Any] = {"seconds": {"total": 0.0, "shared": 4.0}}
    evals = [
        {"stage": "rl", "update": 0, "split": "valid", "episodes": 3, "success_rate": 1 / 3, **shared},
        {"stage": "rl", "update": 2, "split": "valid", "episodes": 3, "success_rate": 2 / 3},
    ]
    metrics = [
        {"update": 1, "loss/policy": 0.123456789, "seconds": {"total": 2.0}},
        {"update": 2, "seconds": {"total": 3.0}},
    ]
    for name, lines in (("eval", evals), ("metrics", metrics)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_games(start, 0, {"c": True, "a": False, "b": False})
    write_games(folder, 2, {"b": True, "a": False, "c": True})
    (start / "metrics.jsonl").write_text('{"update": 1}\n')
    return folder


def write_games(run: Path, update: int, won: dict[str, bool]) -> None:
    """Write a file of kept episodes: those asked for, and one that was played unrestricted."""
    about = {"split": "valid", "member": 0}
    lines: list[dict[str, Any]] = [{"evaluation": {}}, {**about, "actions": "free", "task": "a", "success": True}]
    lines += [{**about, "actions": "admissible", "task": task, "success": success} for task, success in won.items()]
    (run / "eval" / f"{update:06d}-valid.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_record_says_which_games_were_won(run: Path, tmp_path: Path) -> None:
    """In the order of their ids, whatever the order of play; before RL as the run of the warm start played them."""
    assert main(["report", str(run), "--results", str(tmp_path / "r.json")]) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    before, after = record["games"]["valid"]
    assert (before["update"], before["won"], after["update"], after["won"]) == (0, "001", 2, "011")
    assert before["sha256"] == after["sha256"]
    assert record["data"] == {"valid": "abc"}
    assert outcomes_of(read_result(tmp_path / "r.json"))["valid"][2].won == "011"


@pytest.mark.parametrize("won", [{"a": True, "b": True, "c": True}, {"a": True, "b": True}], ids=["wins", "number"])
def test_games_that_are_not_those_of_the_evaluation_are_left_out(
    run: Path, tmp_path: Path, won: dict[str, bool]
) -> None:
    write_games(run, 2, won)
    assert main(["report", str(run), "--results", str(tmp_path / "r.json")]) == 0
    assert [each["update"] for each in json.loads((tmp_path / "r.json").read_text())["games"]["valid"]] == [0]


def test_columns_hold_what_lines_did_to_six_digits(run: Path, tmp_path: Path) -> None:
    lines = [{"a": 1, "s": {"t": 0.123456789}}, {"a": 2, "s": {"t": 2.0}, "b": "x"}]
    assert columns(lines) == {"a": [1, 2], "s": {"t": [0.123457, 2.0]}, "b": [None, "x"]}
    assert list(rows(columns(lines))) == [
        {"a": 1, "s": {"t": 0.123457}, "b": None},
        {"a": 2, "s": {"t": 2.0}, "b": "x"},
    ]
    assert columns([]) == {}
    assert list(rows({})) == []
    main(["report", str(run), "--results", str(tmp_path / "r.json")])
    assert [dict(record)["loss/policy"] for record in read_result(tmp_path / "r.json").metrics] == [0.123457, None]


def test_records_of_other_versions(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that ship are of the first format, with a line an update; a later format is refused by name."""
    earlier = read_result(ROOT / "results" / "smollm2-alfworld-grpo-lr2e-5-8x4-start50-seed0.json")
    assert len(earlier.metrics) == earlier.updates == 20
    assert len(outcomes_of(earlier)["valid_seen"][20].won) == 140
    main(["report", str(run), "--results", str(tmp_path / "r.json")])
    record = json.loads((tmp_path / "r.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps(record | {"format": 3, "envrl": "9.0"}))
    assert main(["compare", str(tmp_path / "r.json")]) == 2
    assert "written by a later version of envrl (9.0)" in capsys.readouterr().err


def test_of_a_warm_start_some_steps_are_kept_and_all_seconds() -> None:
    """Seven steps for about three: every second one, the one that measured, and the last, each with the time since."""
    steps = [{"step": n, "loss": float(n), "seconds": {"total": 2.0**n}} for n in range(1, 8)]
    steps[2]["held_out/imitation"] = 0.5
    kept = results.thinned(steps, 3)
    assert [record["step"] for record in kept] == [2, 3, 4, 6, 7]
    assert [record["seconds"]["total"] for record in kept] == [6.0, 8.0, 16.0, 96.0, 128.0]
    assert kept[1]["held_out/imitation"] == 0.5
    assert results.thinned(steps, 50) == steps
    assert results.thinned([], 3) == []
