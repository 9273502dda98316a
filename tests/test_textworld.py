"""The world `textworld` against the package driven directly, and its cache of built games."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

import envrl
from envrl.envs.check import check_env
from envrl.errors import UserError
from envrl.types import Task


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("textworld", reason="textworld is not installed: pip install 'envrl[textworld]'")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield envrl.make("textworld")
    del os.environ["XDG_CACHE_HOME"]
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


def test_keeps_the_contract(world: Any) -> None:
    report = check_env("textworld", split="valid", episodes=3)
    assert report.passed, str(report)


def test_is_the_original(world: Any) -> None:
    import textworld  # pyright: ignore[reportMissingImports]

    from envrl.envs.adapters.textworld_games import game_file

    for task in world.tasks("train")[:3]:
        file = game_file(task)
        wanted = ("admissible_commands", "feedback", "max_score", "objective", "score", "won")
        original = textworld.start(str(file), textworld.EnvInfos(**dict.fromkeys(wanted, True), extras=["walkthrough"]))
        state = original.reset()
        first = world.reset(task)
        assert first.text.endswith(f"\n\nYour task is to: {' '.join(state.objective.split())}")
        assert first.text.split("\n\nYour task is to")[0] in state.feedback
        assert list(first.admissible) == state.admissible_commands
        assert list(world.walkthrough(task)) == state["extra.walkthrough"]
        score, gained = 0, 0.0
        for command in ["examine nothing", *state["extra.walkthrough"]]:
            state, _, done = original.step(command)
            step = world.step(command)
            assert step.observation.text in state.feedback
            assert not step.observation.text.rstrip().endswith(f"{state.score}/{state.moves}")
            assert list(step.observation.admissible) == state.admissible_commands
            assert step.reward == pytest.approx((state.score - score) / state.max_score)
            assert (step.done, step.success) == (done, state.won)
            score, gained = state.score, gained + step.reward
        assert step.success
        assert gained == pytest.approx(1)
        original.close()


def test_games_are_built_once_and_alike(world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from envrl.envs.adapters.textworld_games import game_file

    task = next(task for task in world.tasks("test") if task.kind == "cooking")
    file = game_file(task)
    written = file.stat().st_mtime_ns
    assert game_file(task) == file
    assert file.stat().st_mtime_ns == written
    assert sorted(path.suffix for path in file.parent.glob(f"{file.stem}*")) == [".json", ".z8"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    again = game_file(task)
    assert again != file
    assert again.read_bytes() == file.read_bytes()
    assert not list(again.parent.glob("building*"))


def test_odd_commands_never_reach_the_interpreter(world: Any) -> None:
    world.reset(world.tasks("train")[0])
    assert world.step("look " * 100).observation.text == "That's too long for a command."
    assert world.step("\x00\n\\").observation.text == "That's not a command."
    with pytest.raises(TypeError, match="a command is a text, not of type NoneType"):
        world.step(None)


def test_what_is_not_there_is_the_users_mistake(world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'dev'; choose from train, valid, test"):
        world.tasks("dev")
    with pytest.raises(UserError, match="no task 'train/000000' in the split 'train'; choose from 'train/000000-coin"):
        world.reset(Task("train/000000", "train"))
    with pytest.raises(UserError, match="no challenge 'coin_colector'; did you mean 'coin_collector'"):
        envrl.make("textworld", challenges="coin_colector")
    assert {task.kind for task in envrl.make("textworld", challenges="cooking").tasks("test")} == {"cooking"}
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(UserError, match="cannot be written: set XDG_CACHE_HOME"):
        world.reset(world.tasks("train")[0])


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(UserError, match=r"needs the package 'textworld': pip install 'envrl\[textworld\]'"):
        envrl.make("textworld")
