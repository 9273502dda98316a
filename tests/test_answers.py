"""What a world may say, and what becomes of it: plain, refused in one sentence, or set aside, wherever it is played."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from boxes import COMMANDS, Boxes, register, tiny
from envrl import registry as things
from envrl.build import env_maker
from envrl.cli.main import main
from envrl.envs import registry
from envrl.envs.answers import listed_tasks
from envrl.envs.check import check_env
from envrl.envs.pool import ProcessPool
from envrl.envs.protocol import TextEnv
from envrl.envs.registry import register_env
from envrl.envs.settings import WorldSettings, set_maker
from envrl.envs.vector import LocalWorlds, Start
from envrl.errors import Interrupted, UserError
from envrl.eval.split import evaluate_script
from envrl.rendering.messages import MessageWriter
from envrl.rendering.prompts import find_format
from envrl.rollout.policy import Policy
from envrl.rollout.runner import play_episodes
from envrl.rollout.scheduler import PlaySettings
from envrl.trainer.loop import train
from envrl.types import Completion, Observation, Step, Task
from odd import READABLE, REFUSED, Closing, Failing, Odd
from scripted import Scripted

TASK = Boxes().tasks("train")[1]  # a coin, which is in box 1
TRAINING = tuple(task.id for task in Boxes().tasks("train"))
PLAIN = [Boxes().reset(TASK), Step(Observation("You open box 1 and find the coin.", COMMANDS), 1.0, True, True)]


def episode(worlds: LocalWorlds | ProcessPool) -> list[Observation | Step | None]:
    try:
        return [*worlds.reset([Start(0, TASK, 0)]), *worlds.step([(0, "open box 1")])]
    finally:
        worlds.finish()


@pytest.mark.parametrize("kind", READABLE)
def test_what_can_be_read_is_made_plain(kind: str) -> None:
    for make in (partial(Odd, kind), set_maker(partial(Odd, kind), WorldSettings(step_cost=0.0, distractors=0))):
        first, step = episode(LocalWorlds(make))
        assert [first, step] == PLAIN
        assert isinstance(step, Step)
        assert (type(step.reward), type(step.done), type(step.success)) == (float, bool, bool)
        assert type(step.observation.text) is str
        assert type(step.observation.admissible) is tuple
        json.dumps([step.reward, step.done, step.success, step.observation.text, step.observation.admissible])
    assert check_env(Odd(kind)).passed
    cost = episode(LocalWorlds(set_maker(partial(Odd, kind), WorldSettings(step_cost=0.25))))[1]
    assert isinstance(cost, Step)
    assert cost.reward == 0.75


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_by_play_and_by_the_contract_test(kind: str) -> None:
    worlds = LocalWorlds(partial(Odd, kind))
    with pytest.warns(UserWarning, match=r"set aside the task 'train/1': its world failed 2 times, ") as warned:
        assert episode(worlds) == [PLAIN[0], None]
    sentence = REFUSED[kind][1]
    assert sentence in str(warned[0].message)
    assert sentence in worlds.set_aside["train/1"]
    report = check_env(Odd(kind), episodes=2)
    assert not report.passed
    about = sentence.split("'open box 1'")[-1]
    assert any(about in check.detail for check in report.checks if not check.passed)


def test_workers_take_and_refuse_the_same() -> None:
    for kind in ("numpy", "generator", "repeats"):
        pool = ProcessPool(partial(Odd, kind), 1, 60.0)
        assert episode(pool) == PLAIN
        pool.close()
    pool = ProcessPool(partial(Odd, "nan"), 1, 60.0)
    with pytest.warns(UserWarning, match="the reward of its answer to 'open box 1' is nan, not a finite number"):
        assert episode(pool) == [PLAIN[0], None]
    pool.close()


def trained(folder: Path, name: str, factory: Callable[[], TextEnv], **settings: Any) -> list[dict[str, Any]]:
    register_env(name, factory)
    quick = {"every": 0, "split": ("valid_b",), "episodes": 0, "free_episodes": 2, "probe_episodes": 2}
    run = train(tiny(env={"name": name}, eval=quick, **settings), folder / name)
    lines = [*(run / "metrics.jsonl").read_text().splitlines(), *(run / "eval.jsonl").read_text().splitlines()]
    changing = {"seconds", "rate", "memory"}
    return [{k: v for k, v in json.loads(line).items() if k not in changing} for line in lines]


def test_a_run_on_odd_answers_is_the_run_on_plain_ones(tmp_path: Path) -> None:
    plain = trained(tmp_path, "python-boxes", Boxes)
    assert trained(tmp_path, "odd-boxes", partial(Odd, "numpy")) == plain
    assert {record["env/set_aside"] for record in plain if "env/set_aside" in record} == {0}


def test_a_run_goes_on_without_tasks_whose_world_raises(tmp_path: Path) -> None:
    even = tuple(f"train/{number}" for number in range(0, 48, 2))
    Failing.failed.clear()
    with pytest.warns(UserWarning, match="its world failed 2 times, it raised KeyError: 'it fell over'") as warned:
        *updates, _, _ = trained(tmp_path, "failing-boxes", partial(Failing, even, True))
    said = [str(warning.message) for warning in warned]
    named = {sentence.split("'")[1] for sentence in said if sentence.startswith("set aside")}
    assert named == Failing.failed
    assert named <= set(even)
    assert sum(record["env/set_aside"] for record in updates) > 0
    plain = trained(tmp_path, "sound-boxes", Boxes)
    Failing.failed.clear()
    assert trained(tmp_path, "stumbling-boxes", partial(Failing, even, False)) == plain
    assert Failing.failed


@pytest.mark.filterwarnings("ignore:set aside the task")
@pytest.mark.parametrize(
    ("name", "factory", "reason"),
    [
        ("exiting-boxes", partial(Failing, TRAINING, True, SystemExit), "it raised SystemExit: it fell over"),
        ("nan-boxes", partial(Odd, "nan"), "of its answer to 'open box 1' is nan"),
    ],
)
def test_a_run_on_a_world_that_always_fails_ends_with_one_sentence(
    tmp_path: Path, name: str, factory: Callable[[], TextEnv], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register_env(name, factory)
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'[env]\nname = "{name}"\n[eval]\nsplit = ["valid_a"]\n[warm_start]\nheld_out = 4\n')
    assert main(["train", str(recipe), "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("envrl: the demonstrator 'expert' won none of")
    assert f"of the world '{name}'" in said
    assert reason in said
    assert main(["eval", "random", "--env", name, "--split", "train", "--episodes", "3"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"envrl: the world '{name}' failed in all 3 games of the split 'train': in 'train/")
    assert said.endswith(f"'envrl check-env {name}' tests a world")


def test_a_world_that_is_set_aside_in_an_evaluation_counts_as_lost_and_is_counted(tmp_path: Path) -> None:
    register_env("half-boxes", partial(Failing, ("valid_a/0", "valid_a/1"), True))
    config = tiny(env={"name": "half-boxes"})
    with pytest.warns(UserWarning, match="set aside the task 'valid_a/0'"):
        record, played = evaluate_script("walkthrough", env_maker(config), "valid_a", config)
    assert (record["episodes"], record["success_rate"], record["set_aside"]) == (10, 0.8, 2)
    assert [t.stop_reason for t in played][:3] == ["set aside", "set aside", "done"]


@pytest.fixture
def closing() -> Iterator[None]:
    Closing.open = Closing.most = Closing.opened = 0
    register_env("closing-boxes", Closing)
    yield
    assert Closing.open == 0


@pytest.mark.usefixtures("closing")
def test_worlds_are_closed_where_their_episodes_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = {"tasks": 3, "group_size": 4, "response_tokens": 12, "slots": 5}
    quick = {"every": 0, "split": ("valid_b",), "episodes": 0, "free_episodes": 2, "probe_episodes": 2}
    run = train(tiny(env={"name": "closing-boxes"}, rollout=slots, eval=quick), tmp_path / "run")
    assert Closing.open == 0
    assert Closing.opened > 36
    assert Closing.most <= 7  # slots of an update: 5; of an evaluation: the 7 games of the split
    Closing.most = 0
    assert main(["eval", str(run), "--episodes", "3"]) == 0
    assert main(["eval", "random", "--env", "closing-boxes", "--split", "valid_a"]) == 0
    assert main(["check-env", "closing-boxes"]) == 0


@pytest.mark.usefixtures("closing")
def test_worlds_are_closed_on_the_way_out_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str) -> Completion:
        assert Closing.open == 4
        raise Interrupted("")

    tasks, settings = Boxes().tasks("train")[:4], PlaySettings(max_steps=3, temperature=1.0, actions="free")
    writer, sampler = MessageWriter(find_format("action")), Scripted(interrupted)
    with pytest.raises(Interrupted):
        play_episodes(Policy(writer, sampler), Closing, tasks, [0] * 4, settings, seed=0)
    assert Closing.open == 0
    assert sampler.released == {0, 1, 2, 3}
    looking = Policy(writer, Scripted(lambda _: Completion(text="look")))
    with pytest.warns(UserWarning, match="set aside"):
        played = play_episodes(looking, partial(Closing, True), tasks, [0] * 4, settings, seed=0)
    assert [trajectory.stop_reason for trajectory in played] == ["set aside"] * 4


def test_an_exception_in_close_is_said_and_harms_nothing() -> None:
    class Jammed(Boxes):
        def close(self) -> None:
            raise OSError("jammed")

    with pytest.warns(UserWarning, match="closing a world of type Jammed failed: it raised OSError: jammed"):
        assert episode(LocalWorlds(Jammed)) == PLAIN


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (None, "cannot list the tasks of the split 'train': it raised TypeError"),
        (KeyError("train"), "cannot list the tasks of the split 'train': it raised KeyError: 'train'"),
        (["a", "b"], "lists 'a' among the tasks of the split 'train': each must be an envrl.types.Task"),
        ([Task(7, "train")], "lists Task(id=7"),  # type: ignore[arg-type]
        ([Task("a", "train", "1")], "a whole number for its seed"),  # type: ignore[arg-type]
    ],
)
def test_tasks_that_are_none_are_refused_before_a_run(
    found: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tasks(self: Boxes, split: str) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(Boxes, "tasks", tasks)
    register()
    run = tmp_path / "run"
    for command in (
        ["train", "household-demo", "--env.name", "boxes", "--eval.split", "valid_a", "--run", str(run)],
        ["eval", "random", "--env", "boxes", "--split", "train"],
        ["check-env", "boxes"],
        ["play", "boxes"],
    ):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.startswith("envrl: the world 'boxes' ")
        assert sentence in said
    assert not run.exists()


def test_tasks_may_come_one_by_one() -> None:
    class Flowing(Boxes):
        def tasks(self, split: str) -> Any:
            return iter(super().tasks(split))

    assert listed_tasks(Flowing(), "valid_b", "flowing") == tuple(Boxes().tasks("valid_b"))


def test_a_world_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(**options: Any) -> TextEnv:
        raise OSError("no licence")

    register_env("unlicensed", broken)
    for command in (["check-env"], ["play"], ["eval", "random", "--env"]):
        assert main([*command, "unlicensed"]) == 2
        assert capsys.readouterr().err == "envrl: the world 'unlicensed' cannot be made (OSError: no licence)\n"


def test_a_world_that_fails_under_a_players_hands_ends_with_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    register_env("brittle-boxes", partial(Failing, ("train/0",), True))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(readline=lambda: "look\n"))
    assert main(["play", "brittle-boxes"]) == 1
    assert capsys.readouterr().err == (
        "envrl: the world 'brittle-boxes' failed in the task 'train/0': it raised KeyError: 'it fell over'; "
        "'envrl check-env brittle-boxes' tests a world\n"
    )


def test_installed_worlds_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("installed-boxes", "boxes:Boxes", "envrl.envs")
    broken = EntryPoint("uninstalled-boxes", "no_such_module:Boxes", "envrl.envs")
    scans: list[str] = []

    def found(group: str) -> list[EntryPoint]:
        scans.append(group)
        return [point, broken]

    monkeypatch.setattr(things, "entry_points", found)
    things._points.cache_clear()
    try:
        assert all(isinstance(registry.make("installed-boxes"), Boxes) for _ in range(3))
        assert scans == ["envrl.envs"]
        with pytest.raises(UserError, match=r"'uninstalled-boxes' is 'no_such_module:Boxes', which cannot be imported"):
            registry.make("uninstalled-boxes")
        assert scans == ["envrl.envs"]
        with pytest.raises(UserError, match="did you mean 'installed-boxes'"):
            registry.make("instaled-boxes")  # it may have been installed since: looked up again
        assert scans == ["envrl.envs"] * 2
    finally:
        things._points.cache_clear()
