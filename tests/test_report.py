"""The report: numbers that are drawn and said, texts that are shown, runs that are incomplete."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

import view_runs
from envrl.cli.main import main
from envrl.errors import RunError, UserError
from envrl.report.curves import phases
from envrl.report.page import MOST_EPISODES, one_script, report_data, static_files, write_report
from envrl.report.picture import write_picture
from envrl.report.read import load_run, number
from envrl.report.scale import running_mean, thin
from envrl.report.store import RunStore
from envrl.report.summary import duration, summarize
from envrl.report.tables import figure
from view_runs import HOSTILE, data_of, evaluation, metric, write_lines

EVIL = f"{HOSTILE} </text></svg>"

CONFIG = view_runs.CONFIG.replace('"gigpo"', '"grpo"')


def episode(task: str, won: bool, member: int = 0, **step: Any) -> dict[str, Any]:
    one = {"observation": "A room.\n\nYour task is to: put a cd on the desk.", "action": "look", "probability": 0.93}
    one |= {"reward": float(won), "next_observation": "You see a desk 1."} | step
    base = {"update": 0, "task": task, "kind": "pick_and_place", "member": member, "success": won, "return": float(won)}
    return base | {"stop_reason": "done" if won else "max_steps", "steps": [one]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of 20 updates with evaluations before, in the middle and after."""
    run = tmp_path / "demo"
    run.mkdir()
    (run / "config.toml").write_text(CONFIG)
    write_lines(run / "metrics.jsonl", [metric(update) for update in range(1, 21)])
    rates = {0: (0.4, [0.36, 0.44]), 10: (0.5, [0.46, 0.54]), 20: (0.75, [0.71, 0.79])}
    evals = [evaluation(update, "valid_seen", *rates[update]) for update in rates]
    evals += [evaluation(0, "valid_unseen", 0.31, [0.27, 0.35]), evaluation(20, "valid_unseen", 0.36, [0.32, 0.4])]
    write_lines(run / "eval.jsonl", evals)
    write_lines(
        run / "warm_start.jsonl",
        [{"step": s, "loss/imitation": 2.0 / s, "seconds": {"total": 0.5}} for s in range(1, 9)],
    )
    write_lines(run / "trajectories" / "eval-000000-valid_seen.jsonl", [episode("a", False), episode("b", True)])
    later = [episode("a", True, predicted_observation="You see a shelf 1."), episode("b", True)]
    write_lines(run / "trajectories" / "eval-000020-valid_seen.jsonl", later)
    write_lines(run / "trajectories" / "update-000010.jsonl", [episode("c", m % 2 == 0, m) for m in range(8)])
    return run


# --- what is said ----------------------------------------------------------------------------------------------------


def test_summary(run: Path) -> None:
    assert summarize(run).splitlines() == [
        "valid_seen    40.0 % (36.0 to 44.0) -> 75.0 % (71.0 to 79.0)   500 episodes, after 20 updates",
        "valid_unseen  31.0 % (27.0 to 35.0) -> 36.0 % (32.0 to 40.0)   500 episodes, after 20 updates",
        # 8 steps of 0.5 s, 20 updates of 3.5 s, 5 evaluations of 10 s.
        "took 2 min 4 s: warm start 4.0 s, updates 1 min 10 s, evaluations 50 s",
        f"report: {run / 'report.html'}",
    ]


def test_headline_says_which_intervals_touch(run: Path) -> None:
    shown = report_data(RunStore(run))["overview"]
    seen, unseen = shown["results"]
    assert seen["before"] == {"rate": 0.4, "low": 0.36, "high": 0.44, "episodes": 500, "update": 0}
    assert seen["after"] == {"rate": 0.75, "low": 0.71, "high": 0.79, "episodes": 500, "update": 20}
    assert seen["verdict"] == "The intervals do not touch."
    assert unseen["verdict"] == "The intervals overlap: this may be chance."
    assert seen["kinds"] == [["pick_and_place", seen["before"] | {"episodes": 80, "update": None}, ANY]]
    facts = dict(shown["facts"])
    assert facts["Method"] == "GRPO + state prediction 0.2 + inverse dynamics 0.05"
    assert facts["Episodes played"] == "2\N{NARROW NO-BREAK SPACE}560", "20 × 128"
    assert shown["status"] == "finished"


def test_a_later_line_for_the_same_evaluation_counts(run: Path) -> None:
    with open(run / "eval.jsonl", "a") as file:
        file.write(json.dumps(evaluation(20, "valid_seen", 0.8, [0.76, 0.84])) + "\n")
    assert "-> 80.0 % (76.0 to 84.0)" in summarize(run)


def test_words_of_numbers() -> None:
    assert [figure(v) for v in (0, 3, 0.0123, 99.95, 1234, 12345, 2.5e6, -0.5, 3e-7)] == [
        *("0", "3", "0.0123", "100", "1234", "12.3k", "2.5M", "-0.5", "3.0e-07"),
    ]
    assert [duration(s) for s in (3.21, 59.6, 384, 7265)] == ["3.2 s", "1 min 0 s", "6 min 24 s", "2 h 1 min"]
    assert number({"a": float("nan")}, "a") is None
    assert number({"a": True}, "a") is None
    assert number({"seconds": {"total": 2}}, "seconds > total") == 2.0


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_a_run_that_was_never_evaluated_has_a_page(run: Path) -> None:
    (run / "eval.jsonl").unlink()
    assert report_data(RunStore(run))["overview"]["learningNote"].startswith("Grey: the training episodes")


def test_dots_say_how_many_episodes_they_stand_for(run: Path) -> None:
    assert "Dots: evaluations of 500 episodes each" in report_data(RunStore(run))["overview"]["learningNote"]
    write_lines(run / "eval.jsonl", [evaluation(u, "a", 0.5, [0.4, 0.6], episodes=n) for u, n in ((0, 500), (9, 200))])
    assert "Dots: evaluations of 200 to 500 episodes each" in report_data(RunStore(run))["overview"]["learningNote"]


def test_long_lines_are_thinned_to_means() -> None:
    points = [(float(x), float(x % 2)) for x in range(1000)]
    assert thin(points, 10)[0] == (49.5, 0.5)
    assert len(thin(points, 240)) == 240
    assert running_mean([(0, 0), (1, 3), (2, 6), (3, 9)], reach=1) == [(0, 1.5), (1, 3), (2, 6), (3, 7.5)]


def test_seconds_without_a_phase_are_other(run: Path) -> None:
    layers = phases(load_run(run))
    assert list(layers) == ["rollout", "env", "update", "other"]
    assert layers["other"][0] == (1.0, pytest.approx(3.5 - 1.0 - 0.02 - 2.0))


# --- the page as a file ----------------------------------------------------------------------------------------------


def test_page_is_one_file_that_asks_for_nothing(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', html)
    assert addresses == ["data:,", "#main"], "an icon, so that none is asked for; the way to the content"
    assert "default-src 'none'" in html
    assert sorted(entry.name for entry in run.iterdir()) == [
        *("config.toml", "eval.jsonl", "metrics.jsonl", "report.html", "trajectories", "warm_start.jsonl"),
    ]
    assert write_report(run).read_text(encoding="utf-8") == html, "the same run gives the same page"


def test_only_the_pages_own_script_and_styles_may_run(run: Path) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    scripts = re.findall(r'<script type="module">(.*?)</script>', html, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    for kind, (text,) in (("script", scripts), ("style", styles)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in html
    assert "unsafe" not in html[: html.index("<style>")]


def test_one_script_has_every_module_once_and_no_import() -> None:
    static = static_files()
    script = one_script(static)
    assert not re.search(r"^(?:import|export)\b", script, re.MULTILINE)
    functions = re.findall(r"^(?:async )?function (\w+)|^(?:const|let) (\w+) =", script, re.MULTILINE)
    names = [one or other for one, other in functions]
    assert sorted(names) == sorted(set(names)), "in one script a name can be given once"
    for name, text in static.items():
        if name.endswith(".js"):
            assert text.splitlines()[-1] in script, name


def test_scripts_make_no_markup_of_texts() -> None:
    for name, text in static_files().items():
        if name.endswith(".js"):
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
            assert "</" not in text, f"{name} would end the element that it stands in"
            assert len(text.splitlines()) <= 300


def test_no_text_of_a_run_becomes_markup(run: Path) -> None:
    (run / "config.toml").write_text(CONFIG.replace('"household"', json.dumps(EVIL)) + f"# {EVIL}\n")
    evil = evaluation(
        0, EVIL, 0.5, [0.4, 0.6], by_task={EVIL: {"episodes": 8, "success_rate": 0.5, "ci95": [0.2, 0.8]}}
    )
    write_lines(run / "eval.jsonl", [evil, evil | {"update": 20}])
    write_lines(run / "metrics.jsonl", [metric(u, seconds={EVIL: 1.0, "total": 2.0}) for u in (1, 2)])
    bad = episode(EVIL, False, observation=EVIL, action=EVIL, next_observation=EVIL, predicted_observation=EVIL + "x")
    write_lines(run / "trajectories" / "update-000010.jsonl", [bad | {"kind": EVIL, "member": EVIL}])
    html = write_report(run).read_text(encoding="utf-8")
    assert html.count("<script") == 2
    assert html.count("</script") == 2
    assert "onerror" not in html
    assert data_of(html)["episodes"]["kinds"] == [EVIL, "pick_and_place"]
    write_picture(run, run / "learned.svg")
    ElementTree.parse(run / "learned.svg")


def test_a_file_holds_no_more_episodes_than_a_browser_takes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_EPISODES >= 1000
    monkeypatch.setattr("envrl.report.page.MOST_EPISODES", 3)
    data = report_data(RunStore(run))
    assert len(data["read"]) == len(data["episodes"]["rows"]) == 3
    assert data["overview"]["notes"] == ["3 of 12 recorded episodes are in this file: 'envrl view demo' shows all."]


def test_a_run_still_going(run: Path) -> None:
    write_lines(run / "metrics.jsonl", [metric(update) for update in range(1, 6)])
    write_lines(run / "eval.jsonl", [evaluation(0, "valid_seen", 0.4, [0.36, 0.44])])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"update": 6, "env_st')
    shown = data_of(write_report(run).read_text(encoding="utf-8"))["overview"]
    assert shown["status"] == "update 5 of 20"
    assert [result["verdict"] for result in shown["results"]] == ["No evaluation after it yet."]
    assert shown["notes"] == ["metrics.jsonl ends in half a line: it is shown up to its last whole line."]
    assert "40.0 % (36.0 to 44.0)   500 episodes, before any update" in summarize(run)


def test_a_run_in_its_warm_start(run: Path) -> None:
    for name in ("metrics.jsonl", "eval.jsonl"):
        (run / name).unlink()
    shown = data_of(write_report(run).read_text(encoding="utf-8"))["overview"]
    assert shown["results"] == []
    assert shown["warmStartNote"].startswith("Imitation of 1500 demonstrations by the expert")
    assert [chart["title"] for chart in shown["warmStart"]] == ["Imitation loss"]
    assert summarize(run).startswith("no evaluation yet\ntook 4.0 s: warm start 4.0 s\n")
    with pytest.raises(UserError, match="holds no evaluation yet"):
        write_picture(run, run / "learned.svg")


def test_a_run_without_auxiliary_losses_shows_none(run: Path) -> None:
    write_lines(run / "metrics.jsonl", [{"update": 1, "train/success_rate": 0.5}, {"update": 2, "entropy": None}])
    shown = report_data(RunStore(run))["overview"]
    assert shown["updates"] == []
    assert shown["phases"] == []


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "eval.jsonl", "warm_start.jsonl", "trajectories/update-000010.jsonl"]
)
@pytest.mark.parametrize("line", ["{oops\n", "[1]\n"])
def test_a_broken_line_is_named(run: Path, name: str, line: str) -> None:
    text = (run / name).read_text()
    (run / name).write_text(line + text)
    with pytest.raises(UserError, match=rf"line 1 of .*{re.escape(name)} is not"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run: there is no such directory"):
        write_report(tmp_path / "absent")
    with pytest.raises(UserError, match=r"is not a run: it has no config\.toml"):
        write_report(tmp_path)
    (tmp_path / "config.toml").write_text("seed = 1\n")
    with pytest.raises(UserError, match="has nothing to report yet"):
        write_report(tmp_path)
    (tmp_path / "config.toml").write_text("seed = \n")
    with pytest.raises(UserError, match="is not TOML"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_a_full_disk_leaves_the_old_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(run)
    (run / "report.html").write_text("old")

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match=r"cannot write .*report\.html: No space left"):
        write_report(run)
    assert (run / "report.html").read_text() == "old"
    assert not (run / ".tmp-report.html").exists()


def test_picture_is_one_svg_document(run: Path, tmp_path: Path) -> None:
    write_picture(run, tmp_path / "learned.svg")
    root = ElementTree.parse(tmp_path / "learned.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "40 % → 75 %" in words
    assert "95 % intervals 36–44, 71–79; 500 episodes" in words
    with pytest.raises(UserError, match="there is no folder"):
        write_picture(run, tmp_path / "absent" / "learned.svg")


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        (
            "eval.jsonl",
            '{"split": "a", "update": 0, "success_rate": -1, "episodes": 9}\n',
            "success_rate of -1, which is",
        ),
        ("eval.jsonl", "[" * 100_000 + "\n", "line 1 of .*eval.jsonl is not JSON"),
        ("metrics.jsonl", "[1]\n", "line 1 of .*metrics.jsonl is not a JSON object"),
        ("config.toml", f"seed = {'9' * 5000}\n", "config.toml is not TOML: Exceeds the limit"),
    ],
)
@pytest.mark.parametrize("command", ["report", "compare"])
def test_a_damaged_file_is_named(
    tmp_path: Path, file: str, text: str, sentence: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text("seed = 0\n")
    (tmp_path / file).write_text(text)
    assert main([command, str(tmp_path)]) == 2
    assert re.search(sentence, capsys.readouterr().err)
