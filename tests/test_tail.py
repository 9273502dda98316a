"""The progress of a run from its files: what is told, in which order, and when it is over."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

import envrl.cli.tail as tail
from envrl.cli.main import main
from envrl.locks import held, is_held
from envrl.report.follow import Progress
from view_runs import evaluation, metric, write_lines, write_run

pytestmark = pytest.mark.quick


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo")


def test_the_lines_of_a_finished_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tail", str(run), "--lines", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "update 19/20  state 0.0526  success 0.5  entropy 0.3  (3.5 s)",
        "update 20/20  state 0.05  success 0.5  entropy 0.3  (3.5 s)",
        "update 20, valid_seen: success 75.0 % (95 % interval 71.0 to 79.0 %, 500 episodes)",
    ]
    assert main(["tail", str(run), "--lines", "100"]) == 0
    first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert first == "warm start, step 8  loss 0.25"
    assert second.startswith("update 0, valid_seen: success 40.0 %")
    assert third.startswith("update 1/20")
    assert main(["tail", str(run), "--lines", "0", "--once"]) == 0
    assert capsys.readouterr().out == ""


def test_only_whole_lines_are_told_and_a_run_that_was_cut_back_goes_on(run: Path) -> None:
    progress = Progress(run, 20)
    told = progress.new()
    assert (len(told), len(progress.lines(told))) == (8 + 20 + 2, 1 + 20 + 2), "of the warm start the last step"
    path = run / "metrics.jsonl"
    with open(path, "a") as file:
        file.write(json.dumps(metric(21)))
    assert progress.new() == []
    with open(path, "a") as file:
        file.write("\n")
    assert [record["update"] for _, record in progress.new()] == [21]
    write_lines(path, [metric(update) for update in range(1, 6)])
    assert progress.new() == []
    with open(path, "a") as file:
        file.write(json.dumps(metric(6)) + "\n")
    assert [record["update"] for _, record in progress.new()] == [6]


def test_a_run_is_followed_until_it_is_over(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "POLL", 0.01)
    monkeypatch.setattr(tail, "PATIENCE", 2)
    write_lines(run / "metrics.jsonl", [metric(19)])
    write_lines(run / "eval.jsonl", [evaluation(0, "valid_seen", 0.4, [0.3, 0.5])])
    with held(run / "config.toml", "held"):
        follower = threading.Thread(target=main, args=[["tail", str(run)]], daemon=True)
        follower.start()
        follower.join(0.2)
        assert follower.is_alive(), "a process works on it"
        for name, record in (("metrics", metric(20)), ("eval", evaluation(20, "valid_seen", 0.4, [0.3, 0.5]))):
            with open(run / f"{name}.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        follower.join(10)
        assert not follower.is_alive()
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].split(":")[0] for line in said[2:]] == [
        "update 19/20",
        "update 20/20",
        "update 20, valid_seen",
    ]


def test_lines_that_come_while_the_end_is_found_out_are_printed(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "POLL", 0.0)
    monkeypatch.setattr(tail, "PATIENCE", 1)
    write_lines(run / "metrics.jsonl", [metric(19)])
    write_lines(run / "eval.jsonl", [])

    def ends(folder: Path) -> bool:
        write_lines(folder / "metrics.jsonl", [metric(19), metric(20)])
        return True

    monkeypatch.setattr(tail, "_is_over", ends)
    assert main(["tail", str(run)]) == 0
    assert "update 20/20" in capsys.readouterr().out


def test_a_run_that_nobody_works_on_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(run / "metrics.jsonl", [metric(1)])
    write_lines(run / "eval.jsonl", [])
    assert not is_held(run / "config.toml")
    assert main(["tail", str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"no process works on {run} now")


@pytest.mark.parametrize("arguments", [["nosuch"], [], [".", "--lines", "-1"]])
def test_what_is_no_run_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tail", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
