"""The world `scienceworld` against the package's own environment, its counts, and the end of its Java process."""

from __future__ import annotations

import importlib.machinery
import os
import random
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

import envrl
from envrl.envs.check import check_env
from envrl.errors import UserError
from envrl.types import Task


@pytest.fixture(scope="module")
def world() -> Any:
    pytest.importorskip("scienceworld", reason="scienceworld is not installed: pip install 'envrl[scienceworld]'")
    try:
        return envrl.make("scienceworld")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is there, for what needs no simulator."""
    package = types.ModuleType("scienceworld")
    package.__spec__ = importlib.machinery.ModuleSpec("scienceworld", None)
    monkeypatch.setitem(sys.modules, "scienceworld", package)


def test_java_is_named_where_it_is_missing(pretended: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(UserError, match=r"needs Java, which is not installed: .*apt-get install default-jre-headless"):
        envrl.make("scienceworld")


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scienceworld", None)
    with pytest.raises(UserError, match=r"needs the package 'scienceworld': pip install 'envrl\[scienceworld\]'"):
        envrl.make("scienceworld")


def test_tasks_are_listed_without_java(pretended: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    world = envrl.make("scienceworld")
    assert [len(world.tasks(split)) for split in ("train", "valid", "test")] == [3592, 1796, 1819]
    assert len({task.kind for task in world.tasks("test")}) == 30
    assert world.tasks("valid")[0] == Task("boil/14", "valid", 14, "boil")
    with pytest.raises(UserError, match="no split 'dev'; choose from train, valid, test"):
        world.tasks("dev")
    for task, sentence in (
        ("boil/3", "'valid' of ScienceWorld has no task 'boil/3'; choose from 'boil/14' to 'boil/20'"),
        ("boil/014", "has no task 'boil/014'"),
        ("boil", "has no task 'boil'"),
        ("bake/1", "no task 'bake'"),
    ):
        with pytest.raises(UserError, match=sentence):
            world.reset(Task(task, "valid"))
    with pytest.raises(UserError, match="no simplification 'eazy'; did you mean 'easy'"):
        envrl.make("scienceworld", simplifications="openDoors,eazy")
    electrical = envrl.make("scienceworld", simplifications="noElectricalAction")
    with pytest.raises(UserError, match="'power-component' cannot be done with"):
        electrical.reset(Task("power-component/10", "valid"))


def test_keeps_the_contract(world: Any) -> None:
    report = check_env("scienceworld", split="valid", episodes=2)
    assert report.passed, str(report)


def test_is_the_original(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field of random play, and of gold paths; the original's Java is told to keep one order as ours does."""
    from scienceworld import ScienceWorldEnv  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-XX:+UnlockExperimentalVMOptions -XX:hashCode=2")
    original = ScienceWorldEnv(envStepLimit=10**9)
    listing = envrl.make("scienceworld", admissible=True, simplifications="openDoors")
    draws = random.Random(0)
    for name, play in (("find-plant", "random"), ("lifespan-shortest-lived", "gold"), ("test-conductivity", "gold")):
        task = next(task for task in listing.tasks("test") if task.kind == name)
        original.load(name, task.seed, "openDoors", generateGoldPath=True)
        gold = original.get_gold_action_sequence()
        assert list(listing.walkthrough(task)) == gold
        text, info = original.reset()
        first = listing.reset(task)
        sentence = info["taskDesc"].removeprefix("Task Description:\nYour task is to ")
        assert first.text == f"{text}\n\nYour task is to: {' '.join(sentence.split())}"
        assert sorted(first.admissible) == sorted(set(info["valid"]))
        drawn = draws.choices(sorted(set(info["valid"]) - {"reset task"}), k=12)
        done = False
        for command in gold if play == "gold" else [*drawn, "nothing like it"]:
            if done:
                break
            text, reward, done, info = original.step(command)
            step = listing.step(command)
            assert (step.observation.text, step.done) == (text, done), command
            assert step.reward == pytest.approx(reward / 100)
            assert sorted(step.observation.admissible or ()) == sorted(set(info["valid"]))
            assert step.info["score"] == info["score"]
            assert step.success == (info["score"] == 100)
        assert done == (play == "gold") == (info["score"] == 100)
    original.close()


def test_counts_are_the_packages(world: Any) -> None:
    from envrl.envs.adapters.scienceworld_simulator import new_game
    from envrl.envs.adapters.scienceworld_world import SIMPLIFICATIONS, VARIATIONS

    game = new_game()
    assert list(game.getTaskNames()) == list(VARIATIONS)
    assert {name: game.getTaskMaxVariations(name) for name in VARIATIONS} == {n: sum(s) for n, s in VARIATIONS.items()}
    assert {"easy", *game.getPossibleSimplifications().split(", ")} == set(SIMPLIFICATIONS)
    for name in ("melt", "grow-plant", "identify-life-stages-2"):
        game.load(name, 0, "", False)
        for split, listed in zip(
            ("train", "valid", "test"),
            (game.getVariationsTrain(), game.getVariationsDev(), game.getVariationsTest()),
            strict=True,
        ):
            assert [task.seed for task in world.tasks(split) if task.kind == name] == list(listed)


def test_a_wrong_focus_loses(world: Any) -> None:
    task = next(task for task in world.tasks("train") if task.kind == "find-animal")
    world.reset(task)
    step = world.step("focus on air")
    assert (step.done, step.success, step.info["score"]) == (True, False, -100)
    assert step.reward == -1
    again = world.step("look around")
    assert (again.observation, again.reward, again.done) == (step.observation, 0.0, True)


_PLAYS = """
import sys, envrl
from envrl.envs.adapters.scienceworld_simulator import _gateway
import os
world = envrl.make("scienceworld")
world.reset(world.tasks("train")[0])
print(_gateway(os.getpid()).java_process.pid, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_java_ends_with_its_parent(world: Any, end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PLAYS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        java = int(parent.stdout.readline())
        os.kill(java, 0)
        if end == "kill":
            parent.send_signal(signal.SIGKILL)
        else:
            parent.stdin.write("\n")
            parent.stdin.flush()
        parent.wait(60)
    deadline = time.monotonic() + 60
    while _lives(java):
        assert time.monotonic() < deadline, "Java lives on"
        time.sleep(0.05)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.is_file() or status.read_text().rpartition(")")[2].split()[0] != "Z"
