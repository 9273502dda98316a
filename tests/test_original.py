"""Our household engine beside the original one, live; and worlds that differ, which a comparison must see."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import envrl
from envrl.cli.main import main
from envrl.envs.against import compare_envs
from envrl.envs.household import export
from envrl.envs.household.export import export_game, game_document
from envrl.envs.household.game import Game
from envrl.envs.household.generator import GeneratedTasks, generate_problem, index_of
from envrl.envs.household.original import Original
from envrl.envs.household.pddl import load_game
from envrl.envs.household.problem import GOAL_KINDS, Problem
from envrl.envs.household.world import Household
from envrl.errors import UserError
from envrl.types import Observation, Step, Task
from test_check_env import Doors

PACKAGES = ("alfworld", "fast_downward", "textworld")
with_original = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in PACKAGES),
    reason="ALFWorld's own engine is not installed: pip install 'envrl[alfworld-textworld]'",
)


@dataclass
class Games:
    """A source of the given problems, by their place in the list."""

    problems: Sequence[Problem]
    key = "given"

    def tasks(self, split: str) -> tuple[list[Task], int]:
        return [Task(str(number), split) for number in range(len(self.problems))], 0

    def problem(self, task: Task) -> Problem:
        return self.problems[int(task.id)]

    def game(self, task: Task) -> Game:
        return Game(self.problem(task))

    def document(self, task: Task) -> dict[str, Any]:
        return game_document(self.problem(task))


def two_of_each_kind() -> list[Problem]:
    tasks = GeneratedTasks("valid_unseen")[:200]
    chosen = [[task for task in tasks if task.kind == kind][:2] for kind in GOAL_KINDS]
    return [generate_problem(*index_of(task)) for kind in chosen for task in kind]


@with_original
@pytest.mark.parametrize("split", ["train", "valid_seen", "valid_unseen"])
def test_alfworld_answers_as_the_original_does(alfworld_data: Path, split: str) -> None:
    comparison = compare_envs("alfworld", "alfworld-textworld", data=str(alfworld_data), split=split, steps=10)
    assert comparison.differences == ()
    assert comparison.games == 8
    assert comparison.steps > 40


@with_original
def test_generated_games_are_the_same_in_the_original() -> None:
    games = Games(two_of_each_kind())
    comparison = compare_envs(Household(games), Original(games), episodes=12, steps=12)
    assert comparison.differences == ()
    assert comparison.games == 12


@with_original
def test_every_rule_is_the_same_in_the_original(kitchen: Problem) -> None:
    games = Games([kitchen] * 10)
    comparison = compare_envs(Household(games), Original(games), episodes=10, steps=25)
    assert comparison.differences == ()
    assert comparison.steps > 120


@with_original
def test_the_original_is_a_world_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("~/.cache/alfworld").expanduser()
    before = folder.exists(), dict(os.environ)
    env, native = envrl.make("household-textworld"), envrl.make("household")
    with pytest.raises(RuntimeError, match="before the first reset"):
        env.step("look")
    task = env.tasks("valid_seen")[3]
    assert task == native.tasks("valid_seen")[3]
    assert env.reset(task) == native.reset(task)
    for command in native.walkthrough(task):  # type: ignore[attr-defined]
        step = env.step(command)
    assert (step.reward, step.done, step.success) == (1.0, True, True)
    assert env.step("look") == step
    assert (folder.exists(), dict(os.environ)) == before
    assert main(["eval", "expert", "--env", "household-textworld", "--split", "valid_seen", "--episodes", "1"]) == 0
    assert "100.0 %" in capsys.readouterr().out


@with_original
def test_an_exported_game_is_read_back_as_it_was(tmp_path: Path) -> None:
    for problem in two_of_each_kind():
        export_game(problem, tmp_path / "game.tw-pddl")
        assert load_game(tmp_path / "game.tw-pddl") == problem
    with pytest.raises(UserError, match=r"game file .*/no/game\.tw-pddl cannot be written: No such file"):
        export_game(problem, tmp_path / "no" / "game.tw-pddl")


def test_without_the_engine_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed \(textworld, .*pip install 'envrl\[alfworld-textworld\]'"):
        envrl.make("household-textworld").tasks("train")
    export._rules.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'envrl\[alfworld-textworld\]'"):
        game_document(two_of_each_kind()[0])


class Echo:
    """A world that never ends, and says what it heard."""

    ways = ("north", "south", "west")

    def tasks(self, split: str) -> list[Task]:
        return [Task(str(number), split) for number in range(3)]

    def reset(self, task: Task, seed: int = 0) -> Observation:
        self.count = 0
        return Observation(f"You stand at {task.id}.", self.ways)

    def step(self, action: str) -> Step:
        self.count += 1
        step = Step(Observation(f"You said {action}.", self.ways), 0.0, False, False)
        return step if self.count == 1 else self.later(step)

    def later(self, step: Step) -> Step:
        """Return the answer to any command but the first."""
        return step


class Late(Echo):
    def later(self, step: Step) -> Step:
        return replace(step, observation=Observation("Quite another text.", self.ways))


class Backwards(Echo):
    def later(self, step: Step) -> Step:
        return replace(step, observation=Observation(step.observation.text, self.ways[::-1]))


class Generous(Echo):
    def later(self, step: Step) -> Step:
        return replace(step, reward=0.5)


class Ended(Echo):
    def later(self, step: Step) -> Step:
        return replace(step, done=True)


class Proud(Echo):
    def later(self, step: Step) -> Step:
        return replace(step, success=True)


class Broken(Echo):
    def later(self, step: Step) -> Step:
        raise OSError("no space")


@pytest.mark.parametrize(
    ("world", "field", "shown"),
    [
        (Late, "text", "'Quite another text.'"),
        (Backwards, "admissible", "('west', 'south', 'north')"),
        (Generous, "reward", "0.5"),
        (Ended, "done", "True"),
        (Proud, "text", "\"its answer to 'west' says success without done"),
        (Broken, "text", "'raised OSError: no space'"),
    ],
)
def test_every_kind_of_difference_is_found(world: type[Echo], field: str, shown: str) -> None:
    comparison = compare_envs(Echo(), world(), episodes=3)
    assert not comparison.passed
    assert len(comparison.differences) == 3
    first = comparison.differences[0]
    assert (first.task, first.step, first.field) == ("0", 2, field)
    assert first.second.startswith(shown)
    assert f": another {field}\n" in str(comparison)
    assert f"Echo against {world.__name__}, split 'train': 3 games, 6 steps, 3 differences" in str(comparison)


def test_worlds_that_agree_and_worlds_that_cannot_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    same = compare_envs(Doors(), Doors(), episodes=30)
    assert (same.passed, same.games, same.differences) == (True, 3, ())
    with pytest.raises(UserError, match="'Doors' and 'household' cannot be compared on split 'train': they list 3 and"):
        compare_envs(Doors(), "household")


def test_the_command_line_compares_and_exits_with_1_where_worlds_differ(capsys: pytest.CaptureFixture[str]) -> None:
    envrl.register_env("echo", Echo)
    envrl.register_env("late-echo", Late)
    assert main(["check-env", "echo", "--against", "echo", "--episodes", "2"]) == 0
    assert capsys.readouterr().out == "echo against echo, split 'train': 2 games, 60 steps, 0 differences\n"
    assert main(["check-env", "echo", "--against", "late-echo", "--split", "valid", "--seed", "4"]) == 1
    said = capsys.readouterr().out
    assert said.startswith("0\n  step 2, ")
    assert ": another text\n  'You said " in said
    assert "\n  'Quite another text.'\n" in said
    assert said.endswith("split 'valid': 3 games, 6 steps, 3 differences\n")
    assert main(["check-env", "household", "--episodes", "0"]) == 2


def test_the_commands_are_a_mixture_that_the_seed_decides() -> None:
    def heard(seed: int) -> list[str]:
        said: list[str] = []

        class Listening(Echo):
            def later(self, step: Step) -> Step:
                said.append(step.observation.text.removeprefix("You said ").removesuffix("."))
                return step

        compare_envs(Listening(), Echo(), seed=seed)
        return said

    assert heard(1) == heard(1) != heard(2)
    ways = sum(command in Echo.ways for command in heard(1))
    assert 40 < ways < 80 < len(heard(1)) == 87
