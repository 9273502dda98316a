"""What is said while work goes on: in plain lines, and on a terminal."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

import envrl.progress as progress
from boxes import tiny
from envrl.progress import Reporter, duration
from envrl.trainer.loop import train


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_what_is_going_on_how_fast_and_how_long_still(clock: list[float]) -> None:
    reporter = Reporter()
    with reporter.phase("update", 20, 5) as outer:
        clock[0] += 180
        outer.show(7, {"success": 0.25})
        with reporter.phase("evaluation of valid_seen", 140, unit="episodes") as inner:
            clock[0] += 20
            assert reporter.line().endswith(": evaluation of valid_seen 0/140 episodes, 20 s")
            inner.show(16.5)
            assert reporter.line() == (
                "update 7/20  success 0.25 (100 s each, 22 min left): "
                "evaluation of valid_seen 16/140 episodes, 1.21 s each, 2 min left"
            )
        with reporter.phase("learning"):
            assert reporter.line().endswith("left): learning, 0 s")
        clock[0] += 1
        with reporter.phase("probe", 400, unit="targets") as inner:
            clock[0] += 2
            inner.show(100)
            assert reporter.line().endswith("probe 100/400 targets, 50 a second, 6 s left")


def test_times_in_words() -> None:
    assert [duration(t) for t in (0.2, 99, 100, 5999, 6000)] == ["0 s", "99 s", "2 min", "100 min", "1.7 h"]


def test_what_is_over_soon_says_nothing_and_the_rest_speaks_by_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines come from a thread of their own: work that reports nothing meanwhile is told of as well."""
    with Reporter().phase("export"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    said = ""
    with Reporter().phase("merging the adapter"):
        while not said:  # a line is due at once, and comes within the thread's half second
            time.sleep(0.05)
            said = capsys.readouterr().err
    assert said.startswith("merging the adapter, ")


def test_a_terminal_shows_the_phases_below_each_other() -> None:
    reporter, written = Reporter(), io.StringIO()
    reporter.console = Console(
        file=written, force_terminal=True, width=110, highlight=False, _environ={"TERM": "xterm"}
    )
    with reporter.phase("update", 2):
        for _ in reporter.over(range(3), "evaluation of valid_seen", "episodes"):
            reporter.say("[a line] between")
            assert reporter._bars is not None
            reporter._bars.refresh()
    assert "0/2" in written.getvalue()
    assert "evaluation of valid_seen" in written.getvalue()
    assert "2/3 episodes" in written.getvalue()
    assert "[a line] between" in written.getvalue()


def test_a_run_says_in_which_phase_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    shown = Reporter.update
    monkeypatch.setattr(
        Reporter,
        "update",
        lambda self, phase: (shown(self, phase), names.append(" > ".join(p.name for p in self._phases))),
    )
    config = tiny(train={"updates": 1}, eval={"split": ("valid_b",), "free_episodes": 2, "probe_episodes": 2})
    train(config, tmp_path / "run")
    assert list(dict.fromkeys(names)) == [
        "warm start > demonstrations",
        "warm start",
        "warm start > held-out demonstrations",
        "update > evaluation of valid_b",
        "update > valid_b unrestricted",
        "update > probe",
        "update > playing",
        "update",
    ]
