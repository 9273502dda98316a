"""alfworld's own interface, played by our engine: beside the real package, its order of games, its expert's place."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from docs_blocks import runnable
from envrl.alfworld import AlfredTWEnv, get_environment
from envrl.envs.household.export import export_game
from envrl.envs.household.generator import GeneratedTasks, generate_problem, index_of
from envrl.errors import UserError

PACKAGES = ("alfworld", "fast_downward", "textworld")
LACKS = (
    ""
    if all(importlib.util.find_spec(name) for name in PACKAGES)
    else "ALFWorld's own engine is not installed: pip install 'envrl[alfworld-textworld]'"
)

CONFIG: dict[str, Any] = {
    "dataset": {
        "data_path": "$ALFWORLD_DATA/json_2.1.1/train",
        "eval_id_data_path": "$ALFWORLD_DATA/json_2.1.1/valid_seen",
        "eval_ood_data_path": None,
        "num_train_games": -1,
        "num_eval_games": -1,
    },
    "env": {
        "domain_randomization": False,
        "task_types": [1, 2, 3, 4, 5, 6],
        "expert_type": "handcoded",
        "goal_desc_human_anns_prob": 0.0,
    },
    "general": {"training_method": "dqn"},
    "rl": {"training": {"max_nb_steps_per_episode": 8}},
    "dagger": {"training": {"max_nb_steps_per_episode": 50}},
}
"""The keys of alfworld's base_config.yaml that its text games read."""


def config(**values: Any) -> dict[str, Any]:
    changed = deepcopy(CONFIG)
    for key, value in values.items():
        *path, last = key.split("__")
        place = changed
        for part in path:
            place = place[part]
        place[last] = value
    return changed


@pytest.fixture(scope="module")
def walkthroughs() -> dict[str, tuple[str, ...]]:
    """Filled with the solution of each game by its path."""
    return {}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, walkthroughs: dict[str, tuple[str, ...]]) -> Path:
    """A folder as `alfworld-download` makes it, with games of the generator, whose rules alfworld brings."""
    if LACKS:
        pytest.skip(LACKS)
    folder = tmp_path_factory.mktemp("games")
    for split, count in (("train", 7), ("valid_seen", 3)):
        for task in GeneratedTasks(split)[:count]:
            game = folder / "json_2.1.1" / task.id / "game.tw-pddl"
            game.parent.mkdir(parents=True)
            problem = generate_problem(*index_of(task))
            export_game(problem, game)
            (game.parent / "traj_data.json").write_text(json.dumps({"task_type": task.kind}))
            walkthroughs[str(game)] = problem.walkthrough
    return folder


@pytest.fixture(autouse=True)
def _there(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(data))


def played(make: Callable[[str], Any], walkthroughs: dict[str, tuple[str, ...]]) -> list[Any]:
    """What two games side by side say: reset, solved or not (the limit is 8), the answers after the end."""
    made = make("AlfredTWEnv")(config(), train_eval="train")
    env = made.init_env(batch_size=2)
    said: list[Any] = [list(made.game_files), made.num_games]
    obs, infos = env.reset()
    said.append((obs, dict(infos)))
    solutions = [walkthroughs[path] for path in infos["extra.gamefile"]]
    for turn in range(9):
        commands = [solution[turn] if turn < len(solution) else "look" for solution in solutions]
        obs, scores, dones, infos = env.step(commands if turn != 3 else ["no such thing", commands[1]])
        said.append((obs, scores, dones, dict(infos)))
    return said


def test_it_says_what_alfworld_says(walkthroughs: dict[str, tuple[str, ...]]) -> None:
    """The same lines of code over both: the order of the games, every text, score, done and info, and their types."""
    from alfworld.agents.environment import get_environment as original  # pyright: ignore[reportMissingImports]

    ours, theirs = played(get_environment, walkthroughs), played(original, walkthroughs)
    assert len(ours) == len(theirs) == 2 + 1 + 9
    for one, other in zip(ours, theirs, strict=True):
        assert one == other
        assert type(one) is type(other)
    assert [type(value) for value in ours[3]] == [type(value) for value in theirs[3]]
    assert {score for answer in ours[3:] for score in answer[1]} == {0, 1}
    assert {answer[2] for answer in ours[3:]} >= {(False, False), (True, True)}


def test_games_are_won_and_stay_so(walkthroughs: dict[str, tuple[str, ...]]) -> None:
    env = AlfredTWEnv(config(), "eval_in_distribution").init_env(batch_size=1)
    for _ in range(3):
        obs, infos = env.reset()
        assert (len(obs), infos["won"]) == (1, [False])
        *_, last = [env.step([command]) for command in walkthroughs[infos["extra.gamefile"][0]][:8]]
        again = env.step(["look"])
        if last[1] == (1,):
            assert last[2:] == ((True,), {**last[3], "won": [True]})
            assert again == last


def test_games_come_in_the_order_of_alfworld() -> None:
    """textworld's: one generator shuffles the list, and shuffles it again after each round."""
    made = AlfredTWEnv(config(), "train")
    env = made.init_env(batch_size=3)
    generator = np.random.RandomState(1234)
    expected: list[str] = []
    order = list(made.game_files)
    for _ in range(3):
        generator.shuffle(order)
        expected += order
    assert [path for _ in range(7) for path in env.reset()[1]["extra.gamefile"]] == expected
    assert env.seed(5) == [5]
    first = env.reset()[1]["extra.gamefile"]
    env.seed(5)
    env.skip(2)
    assert env.reset()[1]["extra.gamefile"][0] == first[2]


def test_limits_and_task_types_are_the_configurations() -> None:
    made = AlfredTWEnv(config(dataset__num_train_games=4), "train")
    assert (len(made.game_files), made.num_games) == (4, 4)
    kinds = {path.split("/")[-3].partition("-")[0] for path in AlfredTWEnv(config(env__task_types=[1, 99])).game_files}
    assert kinds == {"pick_and_place_simple"}
    env = AlfredTWEnv(config(rl__training={"max_nb_steps_per_episode": 2}), "train").init_env(2)
    env.reset()
    assert [env.step(["look"] * 2)[2] for _ in range(3)] == [(False, False), (True, True), (True, True)]


def test_the_experts_next_command_is_there_in_training(walkthroughs: dict[str, tuple[str, ...]]) -> None:
    """After commands that were not its own as well: after five at random it solves the game."""
    made = AlfredTWEnv(config(general__training_method="dagger"), "train")
    env = made.init_env(batch_size=made.num_games)
    generator = np.random.RandomState(0)
    _, infos = env.reset()
    assert [len(plan) for plan in infos["extra.expert_plan"]] == [1] * made.num_games
    for turn in range(50):
        offered = infos["admissible_commands"]
        plan = infos["extra.expert_plan"]
        commands = [generator.choice(some) if turn < 5 else one[0] for some, one in zip(offered, plan, strict=True)]
        _, scores, _, infos = env.step(commands)
    assert sum(scores) == made.num_games
    held_out = AlfredTWEnv(config(general__training_method="dagger"), "eval_in_distribution").init_env(1)
    assert set(held_out.reset()[1]) == {"won", "admissible_commands", "extra.gamefile"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"env__domain_randomization": True}, "env.domain_randomization .* set it to False"),
        ({"general__training_method": "ppo"}, "general.training_method is 'dqn' or 'dagger', not 'ppo'"),
        ({"general__training_method": "dagger", "env__expert_type": "planner"}, "env.expert_type = 'planner' is not"),
        ({"dataset__data_path": "$ALFWORLD_DATA/nowhere"}, "dataset.data_path names '.*nowhere', which is no folder"),
        ({"dataset__data_path": None}, "dataset.data_path names the folder of the games, and is None"),
        ({"env__task_types": [7]}, "holds no text game of the task types asked for"),
        ({"general": {}}, "the configuration has no general.training_method"),
    ],
)
def test_what_cannot_be_had_is_said(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        AlfredTWEnv(config(**values), "train").init_env(1)


def test_wrong_calls_are_said() -> None:
    with pytest.raises(UserError, match="plays text games, 'AlfredTWEnv', and not 'AlfredThorEnv'"):
        get_environment("AlfredThorEnv")
    with pytest.raises(UserError, match="no split 'eval' of alfworld's"):
        AlfredTWEnv(config(), "eval")
    env = AlfredTWEnv(config(), "train").init_env(2)
    with pytest.raises(RuntimeError, match="before the first reset"):
        env.step(["look", "look"])
    env.reset()
    for commands in (["look"], "lo"):
        with pytest.raises(UserError, match="step takes a list of 2 commands, one a game"):
            env.step(commands)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="batch_size is a whole number above 0, not 0"):
        AlfredTWEnv(config(), "train").init_env(0)


def test_a_damaged_game_is_left_out(data: Path, tmp_path: Path) -> None:
    games = sorted((data / "json_2.1.1" / "train").rglob("game.tw-pddl"))
    for number, game in enumerate(games[:2]):
        folder = tmp_path / game.parent.parent.name / f"trial_{number}"
        folder.mkdir(parents=True)
        (folder / "game.tw-pddl").write_bytes(game.read_bytes()[: None if number else 100])
    with pytest.warns(UserWarning, match="left out 1 games of .*is truncated or not JSON"):
        made = AlfredTWEnv(config(dataset__data_path=str(tmp_path)), "train")
    assert made.num_games == 1


def test_the_documented_example_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"config": config()}
    for code in runnable("other-libraries.md", "alfworld"):
        exec(code, names)
    assert len(names["obs"]) == len(names["infos"]["won"]) == 8
