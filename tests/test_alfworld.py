"""The real games: parity with the true engine's transcripts, the walkthroughs, listing, and damaged data."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from envrl.envs import make
from envrl.envs.household.engine import Play
from envrl.envs.household.game import Game
from envrl.envs.household.pddl import check_game, load_game
from envrl.envs.household.problem import HELP
from envrl.envs.household.world import Household, alfworld
from envrl.errors import UserError
from envrl.types import Task
from plain_household import PlainPlay

COUNTS = {  # by kind: train, valid_seen, valid_unseen, valid_train
    "pick_and_place_simple": (790, 35, 24, 46),
    "look_at_obj_in_light": (308, 13, 18, 19),
    "pick_clean_then_place_in_recep": (650, 27, 31, 37),
    "pick_heat_then_place_in_recep": (459, 16, 23, 25),
    "pick_cool_then_place_in_recep": (533, 25, 21, 28),
    "pick_two_obj_and_place": (813, 24, 17, 45),
}
SPLITS = ("train", "valid_seen", "valid_unseen", "valid_train")


@pytest.fixture(scope="session")
def world(alfworld_data: Path) -> Household:
    return alfworld(str(alfworld_data))


@pytest.fixture(scope="session")
def one_game(world: Household, alfworld_data: Path) -> tuple[str, dict[str, Any]]:
    """The id and the fields of the first game of valid_seen."""
    task = world.tasks("valid_seen")[0]
    root = alfworld_data / "json_2.1.1" if (alfworld_data / "json_2.1.1").is_dir() else alfworld_data
    return task.id, json.loads((root / task.id).read_text())


def test_every_transcript_of_the_true_engine(world: Household, transcripts: list[dict[str, Any]]) -> None:
    steps = 0
    for episode in transcripts:
        first = world.reset(Task(id=episode["game"], split=episode["game"].split("/")[0]))
        assert first.text == episode["reset_obs"]
        assert first.admissible == tuple(episode["admissible0"])
        for line in episode["steps"]:
            step = world.step(line["action"])
            assert step.observation.text == line["obs"], line["action"]
            assert step.observation.admissible == tuple(line["admissible"]), line["action"]
            assert (step.reward, step.done, step.success) == (line["reward"], line["done"], line["won"]), line["action"]
            steps += 1
    assert (len(transcripts), steps) == (48, 945)


def test_the_plain_engine_has_the_transcripts_right_too(world: Household, transcripts: list[dict[str, Any]]) -> None:
    for episode in transcripts:
        plain = PlainPlay(world.problem(Task(id=episode["game"], split=episode["game"].split("/")[0])))
        assert (plain.text, plain.admissible()) == (episode["reset_obs"], episode["admissible0"])
        for line in episode["steps"]:
            plain.step(line["action"])
            assert (plain.text, plain.admissible(), plain.done) == (line["obs"], line["admissible"], line["won"])


def test_all_walkthroughs_win_exactly_at_their_last_step(world: Household) -> None:
    lengths: Counter[int] = Counter()
    for split in SPLITS:
        for task in world.tasks(split):
            world.reset(task)
            done = [world.step(command).done for command in world.walkthrough(task)]
            assert done == [False] * (len(done) - 1) + [True], task.id
            lengths[len(done)] += 1
    assert lengths == {3: 137, 4: 1076, 5: 137, 6: 1170, 7: 601, 8: 666, 9: 226, 10: 14}
    assert world.skipped == 0


def test_equal_to_the_plain_engine_in_random_play(world: Household) -> None:
    generator = random.Random(2)
    for task in generator.sample(list(world.tasks("valid_unseen")), 40):
        problem = world.problem(task)
        fast, plain = Play(Game(problem)), PlainPlay(problem)
        for _ in range(60):
            answer = fast.answer()
            rare = [c for c in answer.admissible if not c.startswith(("go", "examine", "help", "look", "inventory"))]
            command = generator.choice(rare if rare and generator.random() < 0.5 else answer.admissible)
            answer = fast.step(command)
            plain.step(command)
            assert (answer.text, list(answer.admissible), answer.done) == (plain.text, plain.admissible(), plain.done)


def test_listing(world: Household) -> None:
    for index, split in enumerate(SPLITS):
        tasks = world.tasks(split)
        assert Counter(task.kind for task in tasks) == {kind: counts[index] for kind, counts in COUNTS.items()}
        identifiers = [task.id for task in tasks]
        assert identifiers == sorted(set(identifiers))
        assert all(i.startswith(f"{split}/") and i.endswith("/game.tw-pddl") for i in identifiers)


def test_a_game_is_read_as_it_is_written(world: Household) -> None:
    identifier = "train/pick_two_obj_and_place-Candle-None-Drawer-427/trial_T20190909_043851_831379/game.tw-pddl"
    problem = world.problem(Task(identifier, "train"))
    assert (problem.goal.kind, problem.goal.object_type, problem.goal.target_type) == (
        "pick_two_obj_and_place",
        "candle",
        "drawer",
    )
    assert (problem.task, problem.help) == ("put two candle in drawer.", HELP)
    assert len(problem.receptacles) == 17
    assert Counter(r.type for r in problem.receptacles)["drawer"] == 8
    basin = next(r for r in problem.receptacles if r.type == "sinkbasin")
    assert (basin.location, basin.openable) == ("loc_bar__minus_7_bar_6_bar_0_bar_60", False)
    candle = next(i for i in problem.items if i.type == "candle")
    assert candle.locations == ("loc_bar__minus_5_bar_0_bar_1_bar_60",)
    assert ("toilet", "candle") in problem.can_contain
    assert problem.walkthrough[:2] == ("go to toilet 1", "take candle 2 from toilet 1")


def test_the_folder_may_be_json_2_1_1_itself_or_named_by_the_environment(
    alfworld_data: Path, world: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = alfworld_data / "json_2.1.1"
    expected = world.tasks("valid_unseen")
    if inner.is_dir():
        assert alfworld(str(inner)).tasks("valid_unseen") == expected
    monkeypatch.setenv("ALFWORLD_DATA", str(alfworld_data))
    assert make("alfworld").tasks("valid_unseen") == expected


def test_a_saved_state_serves_another_world(world: Household, alfworld_data: Path) -> None:
    first, second = world.tasks("valid_seen")[0], world.tasks("valid_seen")[1]
    world.reset(first)
    walkthrough = world.walkthrough(first)
    world.step(walkthrough[0])
    state = world.save()
    rest = [world.step(command) for command in walkthrough[1:]]
    other = alfworld(str(alfworld_data))
    other.reset(second)
    other.load(state)
    assert [other.step(command) for command in walkthrough[1:]] == rest
    assert rest[-1].success


def test_nothing_is_read_until_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", "/nowhere")
    world = alfworld()
    with pytest.raises(UserError, match=r"no data .* /nowhere/envrl/alfworld; get it with 'envrl data get alfworld'"):
        world.tasks("train")
    with pytest.raises(RuntimeError, match="before the first reset"):
        world.step("look")
    with pytest.raises(RuntimeError, match="before the first reset"):
        world.save()


def test_data_folders_without_games(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere' of the world 'alfworld' does not exist; get it with"):
        alfworld(str(tmp_path / "nowhere")).tasks("train")
    with pytest.raises(UserError, match=r"is empty; get it with"):
        alfworld(str(tmp_path)).tasks("train")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"holds neither json_2.1.1 nor a split"):
        alfworld(str(tmp_path)).tasks("train")
    with pytest.raises(UserError, match=r"notes.txt' of the world 'alfworld' is not a folder"):
        alfworld(str(tmp_path / "notes.txt")).tasks("train")
    (tmp_path / "json_2.1.1" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"train' holds no game.tw-pddl; get it with"):
        alfworld(str(tmp_path)).tasks("train")
    with pytest.raises(UserError, match=r"valid_seen' holds no game.tw-pddl"):
        alfworld(str(tmp_path)).tasks("valid_seen")
    with pytest.raises(UserError, match=r"no split 'valid_sen'; did you mean 'valid_seen'\?"):
        alfworld(str(tmp_path)).tasks("valid_sen")


PROBLEM = "pddl_problem"
DAMAGE = [
    ("cut short", lambda text, game: text[: len(text) // 2], r"is truncated or not JSON"),
    ("empty", lambda text, game: "", r"is truncated or not JSON"),
    ("no JSON", lambda text, game: "(define (problem))", r"is truncated or not JSON"),
    ("a list", lambda text, game: "[]", r"is not whole: expected `object`"),
    *[
        (
            f"no {field}",
            lambda text, game, field=field: json.dumps({k: v for k, v in game.items() if k != field}),
            f"is not whole: object missing required field `{field}`",
        )
        for field in ("pddl_domain", "grammar", "pddl_problem", "solvable", "walkthrough")
    ],
    ("a number", lambda text, game: json.dumps({**game, "grammar": 3}), r"expected `str`, got `int` - at `\$.grammar`"),
    ("unsolvable", lambda text, game: json.dumps({**game, "solvable": False}), r"its field `solvable` is false"),
    ("no walk", lambda text, game: json.dumps({**game, "walkthrough": []}), r"its field `walkthrough` is empty"),
    ("no task", lambda text, game: json.dumps({**game, "grammar": "help"}), r"`grammar` has no \"Your task is to: …\""),
    (
        "cut problem",
        lambda text, game: json.dumps({**game, PROBLEM: game[PROBLEM].partition("(:goal")[0]}),
        r"`pddl_problem` has no section `:goal`",
    ),
    (
        "no init",
        lambda text, game: json.dumps({**game, PROBLEM: game[PROBLEM].replace("(:init", "(:start")}),
        r"`pddl_problem` has no section `:init`",
    ),
    (
        "parentheses",
        lambda text, game: json.dumps({**game, PROBLEM: game[PROBLEM].rstrip()[:-1]}),
        r"parentheses that do not match",
    ),
    (
        "goal",
        lambda text, game: json.dumps({**game, PROBLEM: game[PROBLEM].replace("(exists (?o - ", "(forall (?o - ")}),
        r"a goal of none of the six known forms",
    ),
]
DEEP_DAMAGE = [
    ("agent", lambda p: p.replace("(atLocation agent1", "(objectAtLocation agent1"), r"has 0 facts `atLocation`"),
    ("type", lambda p: p.replace("(receptacleType Bed", "(objectType Bed"), r"a receptacle bed\S* without a fact `rec"),
    (
        "place",
        lambda p: p.replace("(receptacleAtLocation Bed", "(objectAtLocation Bed"),
        r"without a fact `receptacleAt",
    ),
    ("unknown", lambda p: p.replace("(openable ", "(magical "), r"a fact `magical` that this engine does not know"),
    ("three", lambda p: p.replace("(openable ", "(openable a b "), r"not of the form \(predicate name \[name\]\)"),
    ("two", lambda p: p.replace("(openable ", "(openable a) (openable b "), r"a fact `openable` that this engine does"),
]


@pytest.fixture
def copy(tmp_path: Path, alfworld_data: Path, world: Household) -> Path:
    """A folder with three games of valid_seen."""
    root = alfworld_data / "json_2.1.1" if (alfworld_data / "json_2.1.1").is_dir() else alfworld_data
    for task in world.tasks("valid_seen")[:3]:
        target = tmp_path / "json_2.1.1" / task.id
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / task.id, target)
    return tmp_path


@pytest.mark.parametrize(("damage", "message"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE])
def test_a_damaged_game_is_named_and_left_out(copy: Path, one_game: tuple[str, Any], damage: Any, message: str) -> None:
    identifier, game = one_game
    path = copy / "json_2.1.1" / identifier
    path.write_text(damage(path.read_text(), game))
    for read in (check_game, load_game):
        with pytest.raises(UserError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    world = alfworld(str(copy))
    with pytest.warns(UserWarning, match=r"left out 1 of 3 games of split 'valid_seen': the game .* " + message):
        tasks = world.tasks("valid_seen")
    assert len(tasks) == 2
    assert world.skipped == 1
    assert identifier not in [task.id for task in tasks]
    with pytest.raises(UserError, match=message):
        world.reset(Task(identifier, "valid_seen"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world.tasks("valid_seen")


@pytest.mark.parametrize(("damage", "message"), [c[1:] for c in DEEP_DAMAGE], ids=[c[0] for c in DEEP_DAMAGE])
def test_damage_to_single_facts_is_found_when_the_game_is_read(
    copy: Path, one_game: tuple[str, Any], damage: Any, message: str
) -> None:
    identifier, game = one_game
    path = copy / "json_2.1.1" / identifier
    damaged = damage(game[PROBLEM])
    assert damaged != game[PROBLEM]
    path.write_text(json.dumps({**game, PROBLEM: damaged}))
    with pytest.raises(UserError, match=message):
        alfworld(str(copy)).reset(Task(identifier, "valid_seen"))


def test_only_damaged_games(copy: Path) -> None:
    for path in copy.rglob("game.tw-pddl"):
        path.write_text("{")
    with pytest.raises(UserError, match=r"no game of split 'valid_seen' can be played; the game .* is truncated"):
        alfworld(str(copy)).tasks("valid_seen")


def test_a_changed_file_is_read_again(copy: Path, one_game: tuple[str, Any]) -> None:
    identifier, game = one_game
    task, path = Task(identifier, "valid_seen"), copy / "json_2.1.1" / identifier
    assert alfworld(str(copy)).walkthrough(task) == tuple(game["walkthrough"])
    path.write_text(json.dumps({**game, "walkthrough": ["look"]}))
    assert alfworld(str(copy)).walkthrough(task) == ("look",)


def test_folders_of_other_task_types_are_no_text_games(copy: Path, one_game: tuple[str, Any]) -> None:
    source = (copy / "json_2.1.1" / one_game[0]).parent
    split = copy / "json_2.1.1" / "valid_seen"
    for name in ("pick_and_place_with_movable_recep-Egg-Bowl-Desk-1", "pick_and_place_simple-AppleSliced-None-Desk-1"):
        shutil.copytree(source, split / name / "trial_1")
    (split / "pick_and_place_simple-Egg-None-Desk-1" / "trial_without_game").mkdir(parents=True)
    (split / "notes.txt").write_text("")
    assert len(alfworld(str(copy)).tasks("valid_seen")) == 3


def test_a_game_that_is_not_there(world: Household) -> None:
    with pytest.raises(UserError, match=r"there is no game 'valid_seen/x/y/game.tw-pddl'"):
        world.reset(Task("valid_seen/x/y/game.tw-pddl", "valid_seen"))
