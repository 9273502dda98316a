"""Settings of any world: what they change, that they draw by (task, seed, turn), and that nothing else moves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import envrl
from boxes import Boxes, files, tiny
from envrl.cli.main import main
from envrl.config.load import load_recipe
from envrl.envs.check import check_env
from envrl.envs.protocol import HasSubgoals, SavableEnv, TextEnv
from envrl.envs.settings import DISTRACTORS, FAILED, WorldSettings, with_settings
from envrl.errors import UserError
from envrl.rollout.scripts import HasExpert, HasWalkthrough, make_script, play_script
from envrl.trainer.loop import train
from envrl.types import Observation, Step, Task

EVERYTHING = WorldSettings(
    distractors=3, hide_admissible=True, failing_actions=0.3, step_cost=0.01, subgoal_reward=0.25
)


class Corridor:
    """A bare world: nothing to save, no expert; `on` three times wins."""

    def tasks(self, split: str) -> list[Task]:
        return [Task(f"{split}/{n}", split, seed=n) for n in range(3)]

    def reset(self, task: Task, seed: int = 0) -> Observation:
        self.at = 0
        return Observation("A corridor.")

    def step(self, action: str) -> Step:
        self.at += action == "on"
        return Step(Observation(f"You are at {self.at}."), float(self.at >= 3), self.at >= 3, self.at >= 3)


def play(env: TextEnv, commands: list[str], task: int = 0, seed: int = 0) -> list[Step]:
    env.reset(env.tasks("train")[task], seed)
    return [env.step(command) for command in commands]


def test_the_defaults_change_nothing() -> None:
    env = Boxes()
    assert with_settings(env, WorldSettings()) is env


@pytest.mark.parametrize("settings", [EVERYTHING, replace(EVERYTHING, hide_admissible=False)])
def test_a_world_with_settings_keeps_the_contract_and_what_it_offers(settings: WorldSettings) -> None:
    env = with_settings(envrl.make("household"), settings)
    assert all(isinstance(env, kind) for kind in (SavableEnv, HasSubgoals, HasWalkthrough, HasExpert))
    report = check_env(env)
    assert report.passed, str(report)
    said = {check.name: check.detail for check in report.checks}
    assert "same each time" in said["save and load exact"]
    assert "8 win" in said["walkthroughs win"]


def test_a_bare_world_is_given_no_more_than_it_has() -> None:
    env = with_settings(Corridor(), WorldSettings(distractors=2, failing_actions=0.4))
    assert not any(isinstance(env, kind) for kind in (SavableEnv, HasSubgoals, HasWalkthrough, HasExpert))
    report = check_env(env)
    assert report.passed, str(report)


def test_distractors_stand_behind_the_text_and_are_drawn_by_task_seed_and_turn() -> None:
    env = with_settings(Boxes(), WorldSettings(distractors=4))

    def lines(task: int, seed: int) -> list[list[str]]:
        first = env.reset(env.tasks("train")[task], seed)
        return [first.text.splitlines()[-4:], *[s.observation.text.splitlines()[-4:] for s in play(env, ["look"] * 5)]]

    drawn = lines(0, 0)
    assert all(set(part) <= set(DISTRACTORS) and len(set(part)) == 4 for part in drawn)
    assert lines(0, 0) == drawn
    assert len({tuple(part) for part in drawn}) == 6  # every turn has its own
    assert lines(1, 0)[0] != drawn[0] != lines(0, 1)[0]
    assert play(env, ["open box 1"])[0].observation.text.startswith("It is empty.\n")
    everything = with_settings(Boxes(), WorldSettings(distractors=len(DISTRACTORS)))
    text = everything.reset(everything.tasks("train")[0]).text
    assert sorted(text.splitlines()[-len(DISTRACTORS) :]) == sorted(DISTRACTORS)


def test_the_list_of_commands_is_hidden_and_its_commands_work() -> None:
    env = with_settings(Boxes(), WorldSettings(hide_admissible=True))
    first, steps = env.reset(env.tasks("train")[0]), play(env, ["open box 1", "open box 3"])
    assert [o.admissible for o in (first, *[s.observation for s in steps])] == [None] * 3
    assert steps[1].success


def test_failing_actions_do_nothing_as_often_as_they_should() -> None:
    env = with_settings(Boxes(), WorldSettings(failing_actions=0.25))
    failed = [s.observation.text == FAILED for task in range(40) for s in play(env, ["open box 4"] * 50, task)[:1]]
    assert 3 <= sum(failed) <= 17  # 40 draws at 0.25
    # Task 0 lies in box 3, which is found at the first turn that does not fail; then the world repeats itself.
    fails = with_settings(Boxes(), WorldSettings(failing_actions=0.9))
    steps = play(fails, ["open box 3"] * 200)
    won = next(n for n, s in enumerate(steps) if s.success)
    assert won > 0
    assert all(s.observation.text == FAILED and s.reward == 0 and not s.done for s in steps[:won])
    assert all(s.done for s in steps[won:])
    assert steps == play(fails, ["open box 3"] * 200)
    # What the world would refuse anyhow it refuses itself.
    assert {s.observation.text for s in play(fails, ["dance"] * 50)} == {"Nothing happens."}


def test_a_failed_command_can_be_given_again_also_by_the_expert() -> None:
    env = with_settings(envrl.make("household"), replace(EVERYTHING, failing_actions=0.5))
    plain = envrl.make("household")
    for task in list(env.tasks("valid_seen"))[:5]:
        played = play_script(env, task, make_script("expert", env, task, 0), 200)
        expected = play_script(plain, task, make_script("expert", plain, task, 0), 200)
        done = [t.action.text for t in played.transitions if not t.next_observation.text.startswith(FAILED)]
        assert done == [t.action.text for t in expected.transitions]
        assert len(done) < len(played.transitions)


def test_every_step_costs() -> None:
    env = with_settings(Boxes(), WorldSettings(step_cost=0.1, failing_actions=0.5))
    steps = play(env, ["look", "open box 1", "dance", "open box 2"])
    assert [round(s.reward, 9) for s in steps] == [-0.1] * 4


def reward_of(env: TextEnv, kind: str, script: str = "walkthrough") -> float:
    task = next(t for t in env.tasks("train") if t.kind == kind)
    return round(play_script(env, task, make_script(script, env, task, 0), 50).total_reward, 9)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("pick_and_place_simple", {"taken", "placed"}),
        ("look_at_obj_in_light", {"taken", "lit"}),
        ("pick_clean_then_place_in_recep", {"taken", "clean", "placed"}),
        ("pick_heat_then_place_in_recep", {"taken", "hot", "placed"}),
        ("pick_cool_then_place_in_recep", {"taken", "cool", "placed"}),
        ("pick_two_obj_and_place", {"taken", "placed", "both placed"}),
    ],
)
def test_subgoals_of_each_household_task_are_paid_once(kind: str, parts: set[str]) -> None:
    plain = envrl.make("household")
    assert isinstance(plain, HasSubgoals)
    assert plain.subgoals() == frozenset()
    task = next(t for t in plain.tasks("train") if t.kind == kind)
    plain.reset(task)
    assert plain.subgoals() == frozenset()
    seen: set[str] = set()
    for command in make_walkthrough(plain)(task):
        plain.step(command)
        seen |= plain.subgoals()
    assert seen == parts
    paid = with_settings(envrl.make("household"), WorldSettings(subgoal_reward=0.25))
    assert reward_of(paid, kind) == 1.0 + 0.25 * len(parts)


def make_walkthrough(env: TextEnv) -> Callable[[Task], Any]:
    assert isinstance(env, HasWalkthrough)
    return env.walkthrough


def test_taking_the_right_thing_twice_is_paid_once_also_after_going_back(kitchen: Any) -> None:
    env = with_settings(envrl.make("household"), WorldSettings(subgoal_reward=0.25))
    assert isinstance(env, SavableEnv)
    task = next(t for t in env.tasks("train") if t.kind == "pick_and_place_simple")
    commands = list(make_walkthrough(env)(task))
    env.reset(task)
    take = next(c for c in commands if c.startswith("take"))
    thing, place = re.fullmatch(r"take (.+) from (.+)", take).groups()  # type: ignore[union-attr]
    before = [env.step(c).reward for c in commands[: commands.index(take)]]
    assert set(before) <= {0.0}
    state = env.save()
    for _ in range(2):
        rewards = [env.step(c).reward for c in (take, f"move {thing} to {place}", take)]
        assert rewards == [0.25, 0.0, 0.0]
        env.load(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (WorldSettings(subgoal_reward=0.1), "names none"),
        (WorldSettings(distractors=41), "from 0 to 40, not 41"),
        (WorldSettings(failing_actions=1.0), "below 1, not 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: WorldSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_settings(Boxes(), settings)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, r"rollout\.actions = 'admissible' restricts"),
        ({"rollout.actions": "free", "rollout.show_admissible": "true"}, r"rollout\.show_admissible"),
        ({"rollout.actions": "free", "rollout.invalid_penalty": "0.1"}, r"rollout\.invalid_penalty"),
    ],
)
def test_settings_of_the_rollout_that_need_the_list_are_refused(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("household-demo", [("env.hide_admissible", "true"), *overrides.items()])


# --- in runs and evaluations -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on boxes with settings; its world answers with distractors, some of its actions fail, steps cost."""
    config = tiny(env={"distractors": 1, "failing_actions": 0.2, "step_cost": 0.125, "max_steps": 4})
    return train(config, tmp_path_factory.mktemp("runs") / "run")


def test_a_recipe_sets_its_world(run: Path) -> None:
    kept = (run / "trajectories").iterdir()
    lines = [json.loads(line) for file in kept for line in file.read_text(encoding="utf-8").splitlines()]
    steps = [step for line in lines for step in line["steps"]]
    assert all(step["observation"].splitlines()[-1] in DISTRACTORS for step in steps)
    assert any(step["next_observation"].startswith(FAILED) for step in steps)
    assert {step["reward"] for step in steps} <= {-0.125, 0.875}


def test_evaluation_takes_the_runs_settings_unless_given(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own,) = envrl.evaluate(run, split="valid_a")
    assert (own["distractors"], own["failing_actions"], own["step_cost"], own["max_steps"]) == (1, 0.2, 0.125, 4)
    assert "trained_on" not in own
    assert own["score"] == pytest.approx(own["success_rate"] - 0.125 * own["turns"])
    last = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()][-2]
    assert own["score"] == last["score"]
    settings = [("env.failing_actions", "0"), ("env.step_cost", "0"), ("env.max_steps", "3")]
    (other,) = envrl.evaluate(run, split="valid_a", settings=settings)
    assert other["score"] == other["success_rate"]
    assert "step_cost" not in other
    assert main(["eval", str(run), "--split", "valid_a", "--env.max_steps", "0"]) == 2
    assert "env.max_steps must be a whole number of at least 1" in capsys.readouterr().err
    assert main(["eval", str(run), "--env.name", "household"]) == 2
    assert "takes --env in place of env.name" in capsys.readouterr().err
    assert main(["eval", str(run), "--train.updates", "3"]) == 2
    assert "can set keys of [env] alone" in capsys.readouterr().err


def test_a_run_is_evaluated_on_another_world(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    envrl.register_env("corridor", Corridor)
    file = tmp_path / "other.json"
    arguments = ["--env", "corridor", "--split", "train", "--actions", "free", "--env.distractors", "0"]
    assert main(["eval", str(run), *arguments, "--json", str(file)]) == 0
    (record,) = json.loads(file.read_text())
    assert (record["env"], record["trained_on"], record["episodes"]) == ("corridor", "boxes", 3)
    assert (record["failing_actions"], record["step_cost"]) == (0.2, 0.125)  # the run's
    assert "distractors" not in record
    assert "of 3 episodes" in capsys.readouterr().out


def test_a_run_on_boxes_is_evaluated_on_household_and_back(run: Path) -> None:
    records = envrl.evaluate(run, env="household", split="valid_unseen", episodes=4)
    assert [(r["env"], r["trained_on"], r["episodes"]) for r in records] == [("household", "boxes", 4)]
    config = tiny(
        env={"name": "household", "max_steps": 6, "subgoal_reward": 0.5},
        model={"context": 512},
        warm_start={"held_out": 0, "demonstrations": 2, "epochs": 1, "demonstrator": "walkthrough"},
        train={"updates": 0},
        eval={"split": ("valid_seen",), "free_episodes": 0, "probe_episodes": 0},
    )
    other = train(config, run.parent / "household")
    with pytest.raises(UserError, match="names none"):
        envrl.evaluate(other, env="boxes", split="valid_a")
    (record,) = envrl.evaluate(other, env="boxes", split="valid_a", settings=[("env.subgoal_reward", "0")])
    assert (record["trained_on"], record["episodes"]) == ("household", 10)


def test_a_run_from_before_there_were_settings_goes_on(tmp_path: Path) -> None:
    config = tiny(train={"updates": 1})
    train(config, tmp_path / "run")
    file = tmp_path / "run" / "config.toml"
    old = re.sub(
        r"(?m)^(distractors|hide_admissible|failing_actions|step_cost|subgoal_reward) = .*\n", "", file.read_text()
    )
    file.write_text(old)
    whole = files(tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == whole
    with pytest.raises(UserError, match=r"other values of env\.distractors"):
        train(tiny(train={"updates": 1}, env={"distractors": 1}), tmp_path / "run", resume=True)
