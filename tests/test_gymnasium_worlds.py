"""Worlds on Gymnasium: the adapter against the environments driven directly, the experts, and what cannot be played."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest

import envrl
from envrl.envs.adapters.gymnasium_world import GymnasiumWorld, SavableGymnasiumWorld, Wording
from envrl.envs.adapters.seeded import SeededTasks
from envrl.envs.adapters.sokoban_levels import make_level
from envrl.envs.check import check_env
from envrl.envs.vector import LocalWorlds, Start
from envrl.errors import UserError
from envrl.rendering.formats import task_text
from envrl.rollout.scripts import make_script, play_script
from envrl.types import Task

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'envrl[gymnasium]'")
minigrid = pytest.importorskip("minigrid", reason="minigrid is not installed: pip install 'envrl[minigrid]'")

WORLDS = ("babyai", "frozenlake", "sokoban")


@pytest.mark.parametrize("name", WORLDS)
def test_keeps_the_contract(name: str) -> None:
    for split in ("train", "valid", "test"):
        report = check_env(name, split=split, episodes=5)
        assert report.passed, str(report)


@pytest.mark.parametrize("name", WORLDS)
def test_splits_share_no_game_and_ids_are_stable(name: str) -> None:
    world = envrl.make(name)
    assert [len(world.tasks(split)) for split in ("train", "valid", "test")] == [20_000, 500, 500]
    seeds = {split: {task.seed for task in world.tasks(split)} for split in ("train", "valid", "test")}
    assert sum(map(len, seeds.values())) == 21_000 == len(set().union(*seeds.values()))
    if name != "babyai":  # there two games may look alike at first, since a part of them is seen
        tasks = [task for split in seeds for task in world.tasks(split)[:150]]
        assert len({world.reset(task).text for task in tasks}) == 450
    expected = {"babyai": "valid/000001-PickupLoc", "frozenlake": "valid/000001", "sokoban": "valid/000001"}
    assert world.tasks("valid")[1] == Task(expected[name], "valid", 1_000_001, expected[name].partition("-")[2])


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_not_there_is_the_users_mistake(name: str) -> None:
    world = envrl.make(name)
    with pytest.raises(UserError, match=f"'{name}' has no split 'dev'; choose from train, valid, test"):
        world.tasks("dev")
    for task in ("train/020000", "train/1", "train/000003-Go", "", "valid/000001", "train/99999999"):
        with pytest.raises(UserError, match=f"has no task '{task}' in the split 'train'; choose from 'train/000000"):
            world.reset(Task(task, "train"))
    with pytest.raises(UserError, match="has no split ''"):
        world.reset(Task("train/000001", ""))


@pytest.mark.parametrize("name", WORLDS)
def test_a_command_is_a_text(name: str) -> None:
    world = envrl.make(name)
    first = world.reset(world.tasks("train")[0])
    assert task_text(first) != first.text
    with pytest.raises(TypeError, match="a command is a text, not of type bytes"):
        world.step(b"go up")  # type: ignore[arg-type]
    step = world.step("x" * 1_000_000)
    assert step.observation.text.startswith("That is no command here. The commands are: ")
    assert step.observation.admissible == first.admissible
    assert not step.done


@pytest.mark.parametrize(
    ("name", "script", "longest"),
    [
        ("babyai", "expert", 30),
        ("babyai", "walkthrough", 30),
        ("frozenlake", "expert", 24),
        ("sokoban", "walkthrough", 60),
    ],
)
def test_scripts_win(name: str, script: str, longest: int) -> None:
    world = envrl.make(name)
    for task in world.tasks("valid")[:40]:
        played = play_script(world, task, make_script(script, world, task, 0), longest)
        assert played.success, task.id
        assert 0.5 < played.total_reward <= 1 + 1e-9


def test_the_bot_goes_on_from_where_others_lead_it() -> None:
    world: Any = envrl.make("babyai")
    draws = random.Random(0)
    won = 0
    for task in world.tasks("train")[:40]:
        expert = world.expert(0)

        def act(observation: Any, expert: Any = expert) -> str:
            advice = expert(observation)
            return draws.choice([advice, advice, advice, "turn left", "go forward", "no command"])

        won += play_script(world, task, act, 100).success
    assert won >= 38


def test_babyai_is_minigrids_own() -> None:
    world = envrl.make("babyai", levels="UnlockLocal,PutNextLocal")
    draws = random.Random(1)
    for task in world.tasks("test")[:4]:
        original: Any = gymnasium.make(f"BabyAI-{task.kind}-v0")
        observed, _ = original.reset(seed=task.seed)
        text = world.reset(task).text
        assert text.endswith(f"\n\nYour task is to: {observed['mission']}.")
        for turn in range(300):
            command = draws.choice(("turn left", "turn right", "go forward", "go forward", "pick up", "drop", "toggle"))
            action = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle").index(command)
            observed, reward, terminated, _, _ = original.unwrapped.step(action)
            step = world.step(command)
            assert (step.reward, step.done, step.success) == (reward, terminated, reward > 0), turn
            facing = ("east", "south", "west", "north")[observed["direction"]]
            assert step.observation.text.startswith(f"You face {facing}.")
            carried = original.unwrapped.carrying
            assert (f"You carry a {carried.color} {carried.type}." if carried else "You carry") in (
                step.observation.text if carried else f"{step.observation.text} You carry"
            )
            if terminated:
                break


def test_babyai_says_what_it_sees() -> None:
    from envrl.envs.adapters.babyai_view import view_text

    unseen, empty, wall = (0, 0, 0), (1, 0, 0), (2, 5, 0)
    image = [[empty] * 7 for _ in range(7)]
    image[0] = [unseen] * 7
    image[3][6] = (5, 2, 0)  # the agent's own cell: a blue key in hand
    image[3][2] = wall
    image[2][5] = (6, 0, 0)  # a red ball
    image[5][6] = (4, 4, 2)  # a locked yellow door
    image[4][3] = (4, 1, 0)  # an open green door
    image[6][6] = wall
    assert view_text(image, 3).splitlines() == [
        "You face north. You carry a blue key.",
        "A locked yellow door is 2 steps to the right.",
        "A red ball is 1 step ahead and 1 to the left.",
        "An open green door is 3 steps ahead and 1 to the right.",
        "A wall is 4 steps ahead.",
        "A wall is 3 steps to the right.",
    ]


def test_frozen_lake_is_gymnasiums_own() -> None:
    from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv, generate_random_map

    for slippery in (False, True):
        world = envrl.make("frozenlake", size=6, slippery=slippery)
        draws = random.Random(2)
        for task in world.tasks("train")[:20]:
            rows = generate_random_map(size=6, seed=task.seed)
            original = FrozenLakeEnv(desc=rows, is_slippery=slippery)
            original.reset(seed=task.seed)
            world.reset(task)
            for _ in range(60):
                action = draws.randrange(4)
                state, reward, terminated, _, _ = original.step(action)
                step = world.step(("go left", "go down", "go right", "go up")[action])
                row, column = divmod(int(state), 6)
                drawn = [list(line) for line in rows]
                drawn[row][column] = "@"
                assert f"Row {row + 1}, column {column + 1}." in step.observation.text
                assert step.observation.text.endswith("\n".join("".join(line) for line in drawn))
                assert (step.reward, step.done, step.success) == (reward, terminated, reward == 1)
                if terminated:
                    break


def test_sokoban_rules() -> None:
    world = envrl.make("sokoban")
    task = world.tasks("valid")[0]
    rows = world.reset(task).text.split("\n\n")[0].splitlines()
    assert rows == ["#######", "#######", "### .##", "## @ ##", "# $   #", "#   $.#", "#######"]

    def after(*commands: str) -> list[str]:
        return [world.step(command).observation.text for command in commands][-1].splitlines()

    assert after("go up")[2] == "###@.##"
    assert after("go up")[2] == "###@.##"  # a wall
    assert after("go right")[2] == "### +##"
    assert after("go left", "go down", "go down", "go left")[4] == "#$@   #"
    assert after("go left")[4] == "#$@   #"  # a wall behind the box
    assert after("go right")[4] == "#$ @  #"  # nothing is pulled
    after("go down")
    step = world.step("go right")
    assert (step.observation.text.splitlines()[5], step.reward, step.done) == ("#   @*#", 0.5, False)
    assert world.step("go right").reward == 0


@pytest.mark.parametrize(("size", "boxes"), [(6, 1), (6, 2), (7, 3), (9, 4), (12, 4)])
def test_sokoban_levels_can_be_solved(size: int, boxes: int) -> None:
    world: Any = envrl.make("sokoban", size=size, boxes=boxes)
    for task in world.tasks("train")[:5]:
        level = make_level(task.seed, size, boxes)
        assert len(level.goals) == len(level.boxes) == boxes
        assert not level.goals & level.boxes
        played = play_script(world, task, make_script("walkthrough", world, task, 0), 60)
        assert played.success
        assert [t.done for t in played.transitions].index(True) == len(level.solution) - 1
        assert played.total_reward == pytest.approx(1)


def test_sokoban_is_a_gymnasium_environment() -> None:
    from gymnasium.utils.env_checker import check_env as check_gymnasium

    from envrl.envs.adapters.sokoban_env import SokobanEnv

    check_gymnasium(SokobanEnv(), skip_render_check=True)


def test_any_environment_of_gymnasium_in_words() -> None:
    from gymnasium.envs.toy_text.taxi import TaxiEnv
    from gymnasium.wrappers import TimeLimit

    commands = {"south": 0, "north": 1, "east": 2, "west": 3, "pick up": 4, "drop off": 5}
    wording = Wording(
        commands, lambda env, observation, info: f"State {observation}.", won=lambda reward, info: reward == 20
    )
    tasks = SeededTasks("taxi", (("train", 50),))
    world = SavableGymnasiumWorld(tasks, lambda task: TimeLimit(TaxiEnv(), 200), wording)
    report = check_env(world)
    assert report.passed, str(report)
    original = TaxiEnv()
    _, info = original.reset(seed=7)
    first = world.reset(tasks.tasks("train")[7])
    assert first.admissible == tuple(c for c, action in commands.items() if info["action_mask"][action])
    for turn in range(200):
        step = world.step("pick up")
        assert step.reward == original.step(4)[1]
        assert step.done == (turn == 199), "the limit of 200 steps is a truncation, which ends the episode here"
    assert step.info == {"truncated": True}
    assert not step.success


def test_observations_that_are_no_text_need_words() -> None:
    world = GymnasiumWorld(
        SeededTasks("pole", (("train", 1),)), lambda task: gymnasium.make("CartPole-v1"), Wording({"left": 0})
    )
    with pytest.raises(
        UserError, match=r"observations of type ndarray: put them into words with Wording\(describe=…\)"
    ):
        world.reset(world.tasks("train")[0])


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("frozenlake", {"size": 3}, "'size' of the world 'frozenlake' is a whole number from 4 to 32, not 3"),
        ("frozenlake", {"size": "8"}, "a whole number from 4 to 32"),
        ("sokoban", {"size": 6, "boxes": 3}, "'boxes' of the world 'sokoban' is a whole number from 1 to 2, not 3"),
        ("babyai", {"levels": ""}, "'levels' of the world 'babyai' names levels"),
        ("babyai", {"data": "x"}, "'babyai' does not take the option 'data'"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        envrl.make(name, **options)


def test_unknown_levels_have_a_nearest_name() -> None:
    world = envrl.make("babyai", levels="GoToLokal")
    with pytest.raises(UserError, match="no level 'GoToLokal'; did you mean 'GoToLocal'"):
        world.reset(world.tasks("train")[0])


@pytest.mark.parametrize(
    ("name", "package"), [("babyai", "minigrid"), ("frozenlake", "gymnasium"), ("sokoban", "gymnasium")]
)
def test_a_missing_package_is_one_sentence(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"'{name}' needs the package '{package}': pip install 'envrl\[{package}\]'"):
        envrl.make(name)


def test_every_environment_is_closed_when_its_episode_is_over() -> None:
    opened: list[Any] = []
    closed: list[Any] = []

    class Counted(gymnasium.Env[Any, Any]):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
            super().reset(seed=seed)
            return "a hall", {}

        def step(self, action: int) -> tuple[str, float, bool, bool, dict[str, Any]]:
            return "a room", float(action), action == 1, False, {}

        def close(self) -> None:
            closed.append(self)

    def open_env(task: Task) -> Any:
        opened.append(Counted())
        return opened[-1]

    tasks = SeededTasks("counted", splits=(("train", 40),))
    worlds = LocalWorlds(lambda: GymnasiumWorld(tasks, open_env, Wording({"wait": 0, "leave": 1})))
    for update in range(3):
        starts = [Start(slot, task, 0) for slot, task in enumerate(tasks.tasks("train")[: 12 - update])]
        worlds.reset(starts)
        assert len(opened) - len(closed) == 12 - update
        worlds.step([(slot, "leave") for slot in range(6)])
        assert len(opened) - len(closed) == 6 - update
        worlds.finish()
        assert len(opened) == len(closed)
    assert (len(opened), opened) == (33, sorted(closed, key=opened.index))
