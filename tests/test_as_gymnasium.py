"""Our worlds as Gymnasium environments: its own checker, the world driven directly, tasks by number and id, vectors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import envrl
from docs_blocks import runnable
from envrl.errors import UserError
from envrl.registry import KINDS
from envrl.types import Observation, Step, Task

gym = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'envrl[gymnasium]'")

from gymnasium.utils.env_checker import check_env  # noqa: E402 - only where it is installed

from envrl.gymnasium import WorldEnv, register_worlds  # noqa: E402

WORLDS: dict[str, dict[str, Any]] = {
    "household": {},
    "webshop": {"split": "valid", "products": 700},
    "frozenlake": {"size": 5},
    "sokoban": {},
    "mixture": {"worlds": ("frozenlake", "sokoban"), "split": "valid"},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", WORLDS)
def test_gymnasiums_checker_passes(name: str) -> None:
    env = gym.make(f"envrl/{name}", **WORLDS[name])
    check_env(env.unwrapped)
    env.close()


@pytest.mark.filterwarnings("error")
def test_alfworlds_games_pass_it_too(alfworld_data: Path) -> None:
    env = gym.make("envrl/alfworld", data=str(alfworld_data), split="valid_seen")
    check_env(env.unwrapped)
    _, info = env.reset(seed=3)
    assert info["task_id"].startswith("valid_seen/")
    assert info["task_id"].endswith("/game.tw-pddl")


def test_the_documented_example_runs() -> None:
    for code in runnable("other-libraries.md", "gymnasium"):
        exec(code, {})


def test_every_world_has_an_id() -> None:
    from envrl.envs.registry import env_names

    assert {f"envrl/{name}" for name in KINDS["env"].built_in} <= set(gym.registry), "as imported"
    assert set(register_worlds()) <= set(gym.registry)
    assert {f"envrl/{name}" for name in env_names()} <= set(gym.registry), "and what was registered since"


def test_it_is_the_world_step_by_step() -> None:
    world = envrl.make("household")
    task = world.tasks("valid_seen")[7]
    commands = ["look", "no such command", *world.walkthrough(task), "look"]  # type: ignore[attr-defined]
    env = gym.make("envrl/household", split="valid_seen")
    text, info = env.reset(options={"task": 7})
    first = world.reset(task)
    assert (text, info["admissible_commands"]) == (first.text, first.admissible)
    assert (info["task_id"], info["kind"], info["split"]) == (task.id, task.kind, "valid_seen")
    assert first.text.endswith(f"Your task is to: {info['task']}")
    for command in commands:
        step = world.step(command)
        text, reward, terminated, truncated, info = env.step(command)
        assert (text, reward, terminated, truncated) == (step.observation.text, step.reward, step.done, False)
        assert (info["admissible_commands"], info["success"]) == (step.observation.admissible, step.success)
    assert terminated
    assert info["success"]


def test_free_words_are_templates_and_rendering_is_the_text() -> None:
    env = gym.make("envrl/webshop", render_mode="ansi", split="valid", products=700)
    text, info = env.reset(seed=0)
    assert info["templates"] == ("search[<words>]",)
    assert env.render() == text
    assert env.step("search[red shoes]")[4]["templates"] == ()
    assert env.unwrapped.metadata["render_modes"] == ["ansi"]


def test_seeds_draw_tasks_and_options_name_them() -> None:
    env = gym.make("envrl/frozenlake")
    ids = [env.reset(seed=seed)[1]["task_id"] for seed in (1, 2, 1)]
    assert ids[0] == ids[2] != ids[1]
    drawn = [env.reset()[1]["task_id"] for _ in range(20)]
    assert len(set(drawn)) > 15
    assert env.reset(options={"task": "valid/000003", "split": "valid"})[1]["task_id"] == "valid/000003"
    for options, said in (
        ({"task": "train/9"}, "the split 'train' has no task 'train/9'; its first is 'train/000000'"),
        ({"task": 20_000}, "the split 'train' has tasks 0 to 19999, not 20000"),
        ({"task": 1.5}, "a task is asked for by its number or its id, not by 1.5"),
        ({"split": "dev"}, "has no split 'dev'"),
        ({"tsk": 1}, "reset of a world has no option 'tsk'; did you mean 'task'?"),
    ):
        with pytest.raises(UserError, match=said):
            env.reset(options=options)
    with pytest.raises(UserError, match="the split 'train' of the world 'webshop' has no tasks"):
        gym.make("envrl/webshop", products=700).reset(seed=0)
    with pytest.raises(UserError, match="'size'"):
        gym.make("envrl/frozenlake", size=3)
    with pytest.raises(UserError, match="rendered as 'ansi', not as 'human'"):
        WorldEnv(render_mode="human")


def test_limits_and_vectors_are_gymnasiums_own() -> None:
    env = gym.make("envrl/household", max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step("look")[2:4] for _ in range(2)] == [(False, False), (False, True)]
    vector = gym.make_vec("envrl/household", num_envs=3, vectorization_mode="sync")
    texts, infos = vector.reset(seed=0)
    assert len(set(texts)) == 3
    texts, rewards, *_, infos = vector.step(("look", "inventory", "help"))
    assert texts[1] == "You are not carrying anything."
    assert all("look" in commands for commands in infos["admissible_commands"])
    assert rewards.tolist() == [0.0, 0.0, 0.0]
    vector.close()


class Bell:
    """A world of one command."""

    def tasks(self, split: str) -> list[Task]:
        return [Task("only", split)]

    def reset(self, task: Task, seed: int = 0) -> Observation:
        return Observation("A bell.", ["ring"])  # type: ignore[arg-type]

    def step(self, action: str) -> Step:
        return Step(Observation("Ding.", None), 1, action == "ring", action == "ring", {"loud": True})


def test_a_world_of_the_users_own_is_registered_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    envrl.register_env("bell", Bell)
    try:
        assert "envrl/bell" in register_worlds()
        env = gym.make("envrl/bell")
        assert env.reset(options={"task": "only"})[1]["admissible_commands"] == ("ring",)
        text, reward, terminated, _, info = env.step("ring")
        assert (text, reward, terminated, info["world"]) == ("Ding.", 1.0, True, {"loud": True})
    finally:
        gym.registry.pop("envrl/bell")


def test_an_id_with_its_module_needs_no_import() -> None:
    code = (
        "import sys, gymnasium as gym; env = gym.make('envrl.gymnasium:envrl/household'); "
        "print(env.reset(options={'task': 0})[1]['kind'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [envrl.make("household").tasks("train")[0].kind, "False"]
