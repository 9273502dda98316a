"""The report: numbers that are drawn and said, texts that are shown, runs that are incomplete."""

from __future__ import annotations

import errno
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from envrl.cli.main import main
from envrl.errors import RunError, UserError
from envrl.report.curves import phases
from envrl.report.episodes import choose_members, choose_pairs, compare, evenly
from envrl.report.html import page, write_report
from envrl.report.picture import learning_picture, write_picture
from envrl.report.plots import Line, line_chart
from envrl.report.read import EpisodeFile, load_run, number
from envrl.report.scale import nice_ticks, running_mean, span, spread, thin
from envrl.report.summary import duration, summarize
from envrl.report.svg import figure, percent

EVIL = "<script>alert(1)</script><img src=http://x.test/y onerror='z'> & \"quoted\" </text></svg>"

CONFIG = """
seed = 3
[env]
name = "household"
[warm_start]
demonstrations = 1500
demonstrator = "expert"
[rollout]
actions = "admissible"
temperature = 1.0
[objective]
estimator = "grpo"
[auxiliary.state]
weight = 0.2
[auxiliary.inverse]
weight = 0.05
[train]
updates = 20
[eval]
temperature = 0.4
"""


def evaluation(update: int, split: str, rate: float, ci95: list[float], **more: Any) -> dict[str, Any]:
    kinds = {"pick_and_place": {"episodes": 80, "success_rate": rate, "ci95": ci95}}
    base = {"stage": "rl", "update": update, "split": split, "episodes": 500, "success_rate": rate, "ci95": ci95}
    return base | {"by_task": kinds, "state_nll": 0.5, "seconds": {"total": 10.0}} | more


def metric(update: int, **more: Any) -> dict[str, Any]:
    seconds = {"rollout": 1.0, "env": 0.02, "update": 2.0, "total": 3.5}
    base = {"update": update, "env_steps": 1900 * update, "episodes": 128 * update, "train/success_rate": 0.5}
    return base | {"loss/state": 1.0 / update, "weight/state": 0.2, "entropy": 0.3, "seconds": seconds} | more


def episode(task: str, won: bool, member: int = 0, **step: Any) -> dict[str, Any]:
    one = {"observation": "A room.\n\nYour task is to: put a cd on the desk.", "action": "look", "probability": 0.93}
    one |= {"reward": float(won), "next_observation": "You see a desk 1."} | step
    base = {"update": 0, "task": task, "kind": "pick_and_place", "member": member, "success": won, "return": float(won)}
    return base | {"stop_reason": "done" if won else "max_steps", "steps": [one]}


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


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
        "valid_seen    40.0 % (36.0 to 44.0) -> 75.0 % (71.0 to 79.0)   500 games, after 20 updates",
        "valid_unseen  31.0 % (27.0 to 35.0) -> 36.0 % (32.0 to 40.0)   500 games, after 20 updates",
        # 8 steps of 0.5 s, 20 updates of 3.5 s, 5 evaluations of 10 s.
        "took 2 min 4 s: warm start 4.0 s, updates 1 min 10 s, evaluations 50 s",
        f"report: {run / 'report.html'}",
    ]


def test_headline_says_which_intervals_touch(run: Path) -> None:
    words = text_of(page(load_run(run)))
    assert "40.0 % → 75.0 % +35.0 points" in words
    assert (
        "Before: 500 games, 36.0 to 44.0 %; after update 20: 500 games, 71.0 to 79.0 %. The intervals do not" in words
    )
    assert "32.0 to 40.0 %. The intervals overlap: this may be chance." in words
    assert "GRPO + state prediction 0.2 + inverse dynamics 0.05" in words
    assert "2 560" in words.replace("\N{NARROW NO-BREAK SPACE}", " "), "episodes played: 20 × 128"
    assert "finished" in words


def test_a_later_line_for_the_same_evaluation_counts(run: Path) -> None:
    with open(run / "eval.jsonl", "a") as file:
        file.write(json.dumps(evaluation(20, "valid_seen", 0.8, [0.76, 0.84])) + "\n")
    assert "-> 80.0 % (76.0 to 84.0)" in summarize(run)


def test_words_of_numbers() -> None:
    assert [figure(v) for v in (0, 3, 0.0123, 99.95, 1234, 12345, 2.5e6, -0.5, 3e-7)] == [
        *("0", "3", "0.0123", "100", "1234", "12.3k", "2.5M", "-0.5", "3.0e-07"),
    ]
    assert percent(0.7449, 1) == "74.5\N{NO-BREAK SPACE}%"
    assert [duration(s) for s in (3.21, 59.6, 384, 7265)] == ["3.2 s", "1 min 0 s", "6 min 24 s", "2 h 1 min"]
    assert number({"a": float("nan")}, "a") is None
    assert number({"a": True}, "a") is None
    assert number({"seconds": {"total": 2}}, "seconds > total") == 2.0


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_points_lie_where_the_numbers_say() -> None:
    line = Line("", [(0, 0.0), (10, 0.5), (20, 1.0)], marks=True, intervals=[(10, 0.25, 0.75)])
    chart = line_chart([line], width=258, height=148, name="x", rate=True, y_range=(0.0, 1.0), labels=False)
    # The frame is 46 to 246 across and 12 to 112 down: 200 pixels for 20 updates, 100 for a rate of 1.
    marks = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="4"', chart)
    assert marks == [("46", "112"), ("146", "62"), ("246", "12")]
    assert 'x1="146" x2="146" y1="87" y2="37" class="whisker c1"' in chart
    assert "<title>update 10: 50\N{NO-BREAK SPACE}% (25\N{NO-BREAK SPACE}% to 75\N{NO-BREAK SPACE}%)</title>" in chart


def test_a_run_that_was_never_evaluated_has_a_page(run: Path) -> None:
    (run / "eval.jsonl").unlink()
    assert "Grey: the training episodes" in text_of(page(load_run(run)))


def test_dots_say_how_many_games_they_stand_for(run: Path) -> None:
    assert "Dots: evaluations of 500 games each" in text_of(page(load_run(run)))
    write_lines(run / "eval.jsonl", [evaluation(u, "a", 0.5, [0.4, 0.6], episodes=n) for u, n in ((0, 500), (9, 200))])
    assert "Dots: evaluations of 200 to 500 games each" in text_of(page(load_run(run)))


def test_ticks_by_hand() -> None:
    assert nice_ticks(0, 60, 6) == [0, 10, 20, 30, 40, 50, 60]
    assert nice_ticks(1, 141, 3) == [50, 100]
    assert nice_ticks(0.0, 1.0, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert nice_ticks(-0.03, 0.02, 5) == pytest.approx([-0.03, -0.02, -0.01, 0, 0.01, 0.02])
    assert nice_ticks(2.0, 2.0) == [2.0]


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 12))
@example(1.0, 400001.0, 2)
def test_ticks_are_few_and_inside(low: float, width: float, most: int) -> None:
    ticks = nice_ticks(low, low + width, most)
    assert 1 <= len(ticks) <= most + 1
    assert ticks[0] >= low - 1e-6 * width
    assert ticks[-1] <= low + width * (1 + 1e-6)


def test_axes_start_at_zero_unless_values_hardly_differ() -> None:
    assert span([0.2, 1.0]) == (0.0, 1.06)
    low, high = span([10.0, 11.0])
    assert 9.9 < low < 10.0
    assert 11.0 < high < 11.1
    assert span([1.0, 1.0], rate=True) == (0.0, 1.0)
    assert span([0.0, 0.0], rate=True) == (0.0, 1.0)


@given(st.lists(st.floats(0, 300), min_size=1, max_size=6))
def test_labels_are_spread_in_order(places: list[float]) -> None:
    moved = spread(places, 15, 0, 300)
    order = sorted(range(len(places)), key=lambda index: places[index])
    for a, b in pairwise(order):
        assert moved[b] - moved[a] >= 15 - 1e-9
    assert min(moved) >= -1e-9
    assert max(moved) <= 300 + 1e-9


def test_long_lines_are_thinned_to_means() -> None:
    points = [(float(x), float(x % 2)) for x in range(1000)]
    assert thin(points, 10)[0] == (49.5, 0.5)
    assert len(thin(points, 240)) == 240
    assert running_mean([(0, 0), (1, 3), (2, 6), (3, 9)], reach=1) == [(0, 1.5), (1, 3), (2, 6), (3, 7.5)]


def test_seconds_without_a_phase_are_other(run: Path) -> None:
    layers = phases(load_run(run))
    assert list(layers) == ["rollout", "env", "update", "other"]
    assert layers["other"][0] == (1.0, pytest.approx(3.5 - 1.0 - 0.02 - 2.0))


# --- episodes --------------------------------------------------------------------------------------------------------


def test_words_that_differ_are_marked() -> None:
    true, predicted = compare("On the desk 1, you see a cd 2.", "On the desk 1, you see a pen 2.")
    assert true == "On the desk 1, you see a <mark>cd</mark> 2."
    assert predicted == 'On the desk 1, you see a <mark class="wrong">pen</mark> 2.'
    assert compare("<b>", "<i>")[0] == "&lt;<mark>b</mark>&gt;"


@given(st.text(max_size=40), st.text(max_size=40))
def test_marking_changes_no_text(true: str, predicted: str) -> None:
    for shown, text in zip(compare(true, predicted), (true, predicted), strict=True):
        assert unescape(re.sub(r"</?mark[^>]*>", "", shown)) == text


def test_games_that_turned_come_first() -> None:
    before = [episode(task, task in "ad") for task in "abcdefg"]
    after = [episode(task, task in "abefg") for task in "abcdefg"]
    chosen = [(a["task"], a["success"], b["success"]) for a, b in choose_pairs(before, after) if b]
    assert chosen == [("b", 0, 1), ("e", 0, 1), ("f", 0, 1), ("a", 1, 1), ("c", 0, 0), ("d", 1, 0)]
    assert [a["task"] for a, _ in choose_pairs(before, [])] == ["a", "b", "c", "d"]


def test_members_of_a_mixed_group_are_shown() -> None:
    lost = [episode("x", False, member) for member in range(8)]
    mixed = [episode("y", member == 5, member) for member in range(8)]
    assert [e["member"] for e in choose_members(lost + mixed)] == [5, 0, 1, 2]
    assert [e["member"] for e in choose_members(lost)] == [0, 1, 2, 3]
    assert choose_members([]) == []


def test_files_are_spread_over_the_run() -> None:
    files = [EpisodeFile(Path(f"{n}"), n, None) for n in range(10, 310, 10)]
    assert [file.update for file in evenly(files, 4)] == [10, 110, 200, 300]
    assert evenly(files[:2], 4) == files[:2]


def test_episodes_are_shown_with_chances_and_predictions(run: Path) -> None:
    html = page(load_run(run))
    assert html.count('<details class="episode"') == 4 + 4
    words = text_of(html)
    assert "update 0 ✗ lost after 1 turn, stopped by the step limit" in words
    assert "update 20 ✓ won in 1 turn" in words
    assert "> look 93 %" in words
    assert "You see a <mark>desk</mark> 1." in html
    assert 'You see a <mark class="wrong">shelf</mark> 1.' in html


# --- the page as a file ----------------------------------------------------------------------------------------------


class Checker(HTMLParser):
    """Sees that elements are closed in order, and collects text, elements and addresses."""

    EMPTY = frozenset({"meta", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.seen: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.addresses += [str(value) for key, value in attrs if key in ("src", "href", "action", "srcset", "data")]
        assert not [key for key, _ in attrs if key.startswith("on")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def text_of(html: str) -> str:
    """Return the page's words, white space made single; the space before a per-cent sign is an ordinary one here."""
    return re.sub(r"[ \n]+", " ", " ".join(checked(html).text).replace("\N{NO-BREAK SPACE}%", " %"))


def test_page_is_one_well_formed_file_that_asks_for_nothing(run: Path) -> None:
    path = write_report(run)
    html = path.read_text(encoding="utf-8")
    checker = checked(html)
    assert checker.addresses == []
    assert not checker.seen & {"script", "link", "iframe", "img", "object", "base", "form"}
    assert not re.search(r"https?://|url\(|@import", html)
    assert "default-src 'none'" in html
    assert sorted(entry.name for entry in run.iterdir()) == [
        *("config.toml", "eval.jsonl", "metrics.jsonl", "report.html", "trajectories", "warm_start.jsonl"),
    ]
    assert write_report(run).read_text(encoding="utf-8") == html, "the same run gives the same page"


def test_no_text_of_a_run_becomes_markup(run: Path) -> None:
    (run / "config.toml").write_text(CONFIG.replace('"household"', json.dumps(EVIL)) + f"# {EVIL}\n")
    evil = evaluation(
        0, EVIL, 0.5, [0.4, 0.6], by_task={EVIL: {"episodes": 8, "success_rate": 0.5, "ci95": [0.2, 0.8]}}
    )
    write_lines(run / "eval.jsonl", [evil, evil | {"update": 20}])
    write_lines(run / "metrics.jsonl", [metric(u, seconds={EVIL: 1.0, "total": 2.0}) for u in (1, 2)])
    bad = episode(EVIL, False, observation=EVIL, action=EVIL, next_observation=EVIL, predicted_observation=EVIL + "x")
    write_lines(
        run / "trajectories" / "eval-000000-<b>.jsonl", [bad | {"kind": EVIL, "stop_reason": EVIL, "member": EVIL}]
    )
    write_lines(run / "trajectories" / "update-000010.jsonl", [bad | {"kind": EVIL, "member": EVIL}])
    html = write_report(run).read_text(encoding="utf-8")
    checker = checked(html)
    assert not checker.seen & {"script", "img"}
    assert EVIL in "".join(checker.text)
    checked(learning_picture(run))


def test_a_run_still_going(run: Path) -> None:
    write_lines(run / "metrics.jsonl", [metric(update) for update in range(1, 6)])
    write_lines(run / "eval.jsonl", [evaluation(0, "valid_seen", 0.4, [0.36, 0.44])])
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"update": 6, "env_st')
    words = text_of(write_report(run).read_text(encoding="utf-8"))
    assert "update 5 of 20" in words
    assert "Before: 500 games, 36.0 to 44.0 %. No evaluation after it yet." in words
    assert "40.0 % (36.0 to 44.0)   500 games, before any update" in summarize(run)


def test_a_run_in_its_warm_start(run: Path) -> None:
    for name in ("metrics.jsonl", "eval.jsonl"):
        (run / name).unlink()
    words = text_of(write_report(run).read_text(encoding="utf-8"))
    assert "No evaluation has been made yet." in words
    assert "Imitation of 1500 demonstrations by the expert" in words
    assert summarize(run).startswith("no evaluation yet\ntook 4.0 s: warm start 4.0 s\n")
    with pytest.raises(UserError, match="holds no evaluation yet"):
        learning_picture(run)


def test_a_run_without_auxiliary_losses_shows_none(run: Path) -> None:
    write_lines(run / "metrics.jsonl", [{"update": 1, "train/success_rate": 0.5}, {"update": 2, "entropy": None}])
    html = page(load_run(run))
    section = html[html.index("Learning curve") : html.index("Actions</h2>")]
    assert "Loss of state prediction" not in section
    assert "Where the time went" not in html


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
    assert "40\N{NO-BREAK SPACE}% → 75\N{NO-BREAK SPACE}%" in words
    assert "95 % intervals 36–44, 71–79; 500 games" in words
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
