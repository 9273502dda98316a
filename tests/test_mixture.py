"""Several worlds in one run: whose tasks, in what share, played by their own worlds, and counted by them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

import envrl
from boxes import register, tiny
from envrl.cli.main import main
from envrl.config.load import dump_config, load_recipe
from envrl.envs.mixture import Mixture
from envrl.envs.protocol import SavableEnv
from envrl.errors import UserError
from envrl.rollout.scripts import make_script, play_script

NAMES = ("household", "boxes")


@pytest.fixture(autouse=True)
def worlds() -> None:
    register()


def test_each_world_has_its_share_of_a_split() -> None:
    """Boxes has 48 training tasks; at two shares to one of household's thousands, 24 of those stand beside them."""
    mixture = Mixture(worlds=NAMES, shares=(1, 2))
    tasks = mixture.tasks("train")
    assert Counter(task.kind for task in tasks) == {"household": 24, "boxes": 48}
    assert len({task.id for task in tasks}) == 72
    numbers = [envrl.make("household").tasks("train").index(mixture._own(task)[1]) for task in tasks[:24]]
    gaps = {b - a for a, b in pairwise(numbers)}
    assert max(gaps) - min(gaps) <= 1, "they are evenly spaced over the split"


def test_a_split_holds_the_worlds_that_have_it() -> None:
    mixture = Mixture(worlds=NAMES)
    assert {task.kind for task in mixture.tasks("valid_seen")} == {"household"}
    assert {task.kind for task in mixture.tasks("valid_a")} == {"boxes"}
    assert len(mixture.tasks("valid_a")) == 10
    with pytest.raises(UserError, match=r"none of the mixture's worlds has a split 'nowhere' \(household: .*; boxes: "):
        mixture.tasks("nowhere")


def test_a_task_is_played_by_its_own_world() -> None:
    """Every answer of an episode by either expert, and every state, is that of the world alone."""
    mixture = Mixture(worlds=NAMES)
    for task in (mixture.tasks("train")[0], mixture.tasks("train")[-1]):
        name, own = mixture._own(task)
        alone = envrl.make(name)
        played, expected = (
            play_script(env, which, make_script("expert", env, which, 3), 30)
            for env, which in ((mixture, task), (alone, own))
        )
        # The expert's seed is keyed by the task's id, which the mixture's tasks have of their own.
        replay = [alone.reset(own), *(alone.step(step.action.text).observation for step in played.transitions)]
        assert [seen.text for seen in replay] == [
            *(step.observation.text for step in played.transitions),
            played.transitions[-1].next_observation.text,
        ]
        assert played.success == expected.success


def test_a_state_goes_back_to_its_world() -> None:
    mixture = Mixture(worlds=("household", "alfworld"))
    task = mixture.tasks("valid_seen")[0]
    before = mixture.reset(task).text
    state = mixture.save()  # type: ignore[attr-defined]
    first = mixture.step("look").observation.text
    other = Mixture(worlds=("household", "alfworld"))
    other.load(state)  # type: ignore[attr-defined]
    assert other.step("look").observation.text == first
    assert before.startswith("-=") or "room" in before
    boxes = Mixture(worlds=NAMES)
    assert not isinstance(boxes, SavableEnv), "boxes cannot save"
    assert isinstance(mixture, SavableEnv)


def test_a_run_on_two_worlds_counts_success_by_world(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(dump_config(tiny(train={"updates": 1}, env={"name": "boxes"})))
    chosen = ["--env.name", "mixture", "--env.mixture.worlds", "boxes,halves", "--env.mixture.shares", "3,1"]
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "recipe.toml"), "--run", str(run), *chosen, "--eval.final", "0"]) == 0
    assert '[env.mixture]\nworlds = [\n    "boxes",\n    "halves",\n]\nshares = [\n    3.0,\n    1.0,\n]\n' in (
        (run / "config.toml").read_text()
    )
    (last, *_) = [
        line
        for line in map(json.loads, (run / "eval.jsonl").read_text().splitlines())
        if line["update"] == 1 and line["split"] == "valid_a"
    ]
    assert {name: each["episodes"] for name, each in last["by_task"].items()} == {"boxes": 10, "halves": 3}
    assert main(["eval", str(run), "--split", "valid_b"]) == 0


def test_it_keeps_the_contract_of_a_world() -> None:
    assert main(["check-env", "mixture", "--split", "train", "--episodes", "4"]) == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([("env.mixture.worlds", "household")], "must name at least two other worlds, each once, not ['household']"),
        ([("env.mixture.worlds", "household,household")], "at least two other worlds, each once"),
        ([("env.mixture.worlds", "household,mixture")], "at least two other worlds"),
        ([("env.mixture.shares", "1,2,3")], "must give each of the 2 worlds a number above 0, not [1.0, 2.0, 3.0]"),
        ([("env.mixture.shares", "1,0")], "a number above 0, not [1.0, 0.0]"),
        ([("env.mixture.shares", "1,many")], "env.mixture.shares must be a list of numbers"),
    ],
)
def test_settings_that_make_no_mixture(settings: list[tuple[str, str]], said: str, tmp_path: Path) -> None:
    from envrl.build import env_maker

    with pytest.raises(UserError) as caught:
        env_maker(load_recipe("household-demo", [("env.name", "mixture"), *settings]))()
    assert said in str(caught.value)


def test_an_unknown_world_is_named() -> None:
    with pytest.raises(UserError, match="unknown world 'housold'; did you mean 'household'"):
        Mixture(worlds=("housold", "boxes"))
