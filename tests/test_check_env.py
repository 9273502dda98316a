"""The contract test finds what is broken; throughput has its figures; a person can play."""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from envrl.cli.main import main
from envrl.envs.bench import bench_env
from envrl.envs.check import Report, check_env
from envrl.envs.play import play
from envrl.errors import UserError
from envrl.types import Observation, Step, Task


class Doors:
    """A sound little world: `open N` for doors 1 to 3; the door named by the task's id wins."""

    def __init__(self) -> None:
        self.task: Task | None = None
        self.opened: frozenset[int] = frozenset()

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(id=str(number), split=split) for number in (1, 2, 3)]

    def observe(self, text: str) -> Observation:
        return Observation(text, tuple(f"open {number}" for number in (1, 2, 3) if number not in self.opened))

    def reset(self, task: Task, seed: int = 0) -> Observation:
        self.task, self.opened = task, frozenset()
        return self.observe(f"Three doors. Open door {task.id}.")

    def step(self, action: str) -> Step:
        if self.task is None:
            raise RuntimeError("no reset yet")
        if action in (f"open {number}" for number in (1, 2, 3) if number not in self.opened):
            self.opened |= {int(action[-1])}
            text = f"Door {action[-1]} is open."
        else:
            text = "What?"
        won = int(self.task.id) in self.opened
        return Step(self.observe(text), float(won), won, won)

    def save(self) -> Any:
        return self.task, self.opened

    def load(self, state: Any) -> None:
        self.task, self.opened = state


class Unsteady(Doors):
    count = itertools.count()

    def reset(self, task: Task, seed: int = 0) -> Observation:
        super().reset(task, seed)
        return self.observe(f"Visit {next(self.count)}.")


class Leaky(Doors):
    """A reset forgets to shut the doors."""

    def reset(self, task: Task, seed: int = 0) -> Observation:
        opened = self.opened
        super().reset(task, seed)
        self.opened = opened if len(opened) == 1 else frozenset()
        return self.observe("Three doors.")


class Silent(Doors):
    def observe(self, text: str) -> Observation:
        return super().observe("" if text.startswith("Door") else text)


class Fragile(Doors):
    def step(self, action: str) -> Step:
        action.encode()
        return super().step(action)


class Deaf(Doors):
    def step(self, action: str) -> Step:
        return super().step("what" if action == "open 2" else action)


class Forgetful(Doors):
    def save(self) -> Any:
        return self.task, frozenset()


class Infinite(Doors):
    def step(self, action: str) -> Step:
        return Step(super().step(action).observation, float("inf"), False, False)


class Stuck(Doors):
    def walkthrough(self, task: Task) -> list[str]:
        return ["open 4"]


class SameNames(Doors):
    def tasks(self, split: str) -> Sequence[Task]:
        return [Task("1", split), Task("1", split)]


def failed(report: Report) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


def test_a_sound_world_passes() -> None:
    report = check_env(Doors())
    assert failed(report) == []
    assert report.passed
    assert str(report).endswith("Doors keeps the contract")
    assert len(report.checks) == 10


@pytest.mark.parametrize(
    ("world", "name", "detail"),
    [
        (Unsteady, "deterministic", "1: another first observation when played again"),
        (Leaky, "resets independent", "another first observation after other episodes"),
        (Silent, "answers well formed", "an observation without text"),
        (Fragile, "odd commands harmless", r"'\ud800' raised UnicodeEncodeError"),
        (Deaf, "admissible commands accepted", "'open 2' is listed as admissible, and answered as nonsense"),
        (Forgetful, "save and load exact", "other answers after going back to the state at step"),
        (Infinite, "answers well formed", "is inf, not a finite number"),
        (Stuck, "walkthroughs win", "1: the walkthrough does not win"),
        (SameNames, "tasks listed", "two tasks have the same id"),
    ],
)
def test_what_is_broken_is_found(world: type[Doors], name: str, detail: str) -> None:
    report = check_env(world())
    assert name in failed(report)
    assert not report.passed
    assert detail in next(check.detail for check in report.checks if check.name == name)
    assert str(report).endswith(f"{world.__name__} breaks the contract")


def test_household_keeps_the_contract() -> None:
    report = check_env("household", episodes=4)
    assert failed(report) == []
    details = {check.name: check.detail for check in report.checks}
    assert details["step before reset refused"] == "RuntimeError"
    assert details["walkthroughs win"].startswith("4 win")
    assert details["save and load exact"] == "the answers after a saved state are the same each time"


def test_alfworld_keeps_the_contract(alfworld_data: Any) -> None:
    assert failed(check_env("alfworld", data=str(alfworld_data), split="valid_unseen", episodes=4)) == []


def test_what_cannot_be_checked_is_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(UserError, match="unknown world 'houshold'; did you mean 'household'"):
        check_env("houshold")
    monkeypatch.setenv("XDG_DATA_HOME", "/nowhere")
    with pytest.raises(UserError, match="envrl data get alfworld"):
        check_env("alfworld")
    with pytest.raises(UserError, match="has no split 'valid_sen'"):
        check_env("household", split="valid_sen")


def test_bench_figures_are_json_and_belong_together() -> None:
    figures = json.loads(json.dumps(bench_env("household", seconds=0.1)))
    assert (figures["env"], figures["split"], figures["games"]) == ("household", "valid_seen", 100)
    assert 0 < figures["steps"] <= 30 * figures["episodes"]
    assert 10 < figures["admissible_mean"] < 60
    for name in ("steps_per_second", "load_ms", "reset_us", "save_us", "load_us"):
        assert figures[name] > 0
    with pytest.raises(UserError, match="more than 0 seconds"):
        bench_env("household", seconds=0)


def test_all_worlds_are_measured_each_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.setattr("envrl.envs.bench_all.env_names", lambda: ["alfworld", "household"])
    assert main(["bench", "env", "all", "--seconds", "0.1"]) == 0
    heads, row, blank, title, missing = capsys.readouterr().out.splitlines()
    assert re.split(" {2,}", heads) == ["world", "steps/s", "load ms", "reset ms", "memory MB", "most time goes to"]
    name, steps, load, reset, memory, limit = re.split(" {2,}", row)
    assert name == "household"
    assert limit in ("reading or making a game", "starting a game again", "the steps themselves")
    assert int(steps.replace(",", "")) > 1000
    assert 0 < float(reset) < float(load)
    assert 10 < int(memory.replace(",", "")) < 4000  # a child's peak begins with what this process holds
    assert (blank, title) == ("", "not available here")
    assert missing.startswith("alfworld: ")
    assert "envrl data get alfworld" in missing


def test_a_world_that_fails_is_named_and_the_status_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    point = tmp_path / "broken-1.dist-info"
    point.mkdir()
    (point / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (point / "entry_points.txt").write_text("[envrl.envs]\nbroken = broken_world:World\n")
    (tmp_path / "broken_world.py").write_text(
        "from envrl.types import Task\n\nclass World:\n    def tasks(self, split):\n        return [Task('a', split)]\n"
        "    def reset(self, task, seed=0):\n        raise ZeroDivisionError('nothing to divide')\n    step = reset\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("envrl.envs.bench_all.env_names", lambda: ["broken"])
    assert main(["bench", "env", "all", "--seconds", "0.1", "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    raised = "it raised ZeroDivisionError: nothing to divide"
    sentence = f"failed with status 1: envrl.errors.RunError: the world 'broken' failed: {raised}"
    assert row == {"env": "broken", "unavailable": sentence, "failed": True}


def test_data_is_of_one_world(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "env", "all", "--data", "x"]) == 2
    assert "--data is of one world" in capsys.readouterr().err


def played(lines: str, world: Any = None, **options: Any) -> tuple[bool, str]:
    screen = io.StringIO()
    won = play(world or Doors(), input=io.StringIO(lines), output=screen, **options)
    return won, screen.getvalue()


def test_a_person_plays_by_command_by_number_and_by_beginning() -> None:
    won, screen = played("?\nopen 3\n1\n", index=0)
    assert won
    assert "  1  open 1\n  2  open 2\n  3  open 3\n" in screen
    assert "(open 1)\nDoor 1 is open.\n\nDone, after 2 steps; reward 1.\n" in screen
    won, screen = played("9\nopen\n? 2\n? x\nshout\nquit\n", index=2)
    assert not won
    assert "The list has numbers 1 to 3; `?` shows it." in screen
    assert "Several commands begin so: open 1; open 2; open 3" in screen
    assert "  2  open 2\n\n> No command has the word 'x'." in screen
    assert "What?" in screen
    assert screen.endswith("\nLeft after 1 steps.\n")


def test_the_beginning_of_one_command_is_enough() -> None:
    won, screen = played("inv\nlook\n", "household", split="valid_seen", index=3)
    assert not won
    assert "(inventory)\nYou are not carrying anything." in screen
    assert screen.endswith("Left after 2 steps.\n")


def test_an_unknown_task_number_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="split 'train' has tasks 0 to 2, not 3"):
        played("", index=3)
