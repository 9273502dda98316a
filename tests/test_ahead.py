"""Play ahead of learning: which weights play what, side by side, and a run that stops goes on as if it had not."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxes import Boxes, tiny
from boxes import register as register_worlds
from envrl.build import form_of, renderer_of, training_settings
from envrl.cli.main import main
from envrl.config.load import dump_config
from envrl.config.schema import Config
from envrl.curriculum import draw_tasks
from envrl.envs.registry import register_env
from envrl.models.load import load_policy
from envrl.registry import register
from envrl.trainer.loop import train
from envrl.types import Observation, Task, TrajectoryGroup, episodes_of
from moments import essence
from playing import play_model
from test_curriculum import lines

UPDATES = 5
STEADY = {"every": 1, "keep": 9}


def recipe(ahead: int, **settings: Any) -> Config:
    """Return a recipe whose weights change much in an update."""
    sections: dict[str, Any] = {
        "train": {"updates": UPDATES, "threads": 1, "learning_rate": 3e-3, "epochs": 2},
        "rollout": {"ahead": ahead},
        "eval": {"every": 0, "final": 1, "free_episodes": 0, "probe_episodes": 0},
    }
    for name, section in settings.items():
        sections[name] = sections.get(name, {}) | section if isinstance(section, dict) else section
    return tiny(**sections)


def recorded(found: dict[int, list[TrajectoryGroup]]) -> str:
    """Register a replay that keeps what each update learns from, and return its name."""

    @register("replay", "recorder")
    class Recorder:
        def __init__(self, plan: object) -> None: ...

        def mix(self, groups: list[TrajectoryGroup], update: int) -> list[TrajectoryGroup]:
            found[update] = list(groups)
            return found[update]

    return "recorder"


@pytest.mark.parametrize("ahead", [1, 2])
def test_update_n_is_played_with_the_weights_before_update_n_less_ahead(tmp_path: Path, ahead: int) -> None:
    """Every episode is the one that the saved weights of that update play, token by token, and none is missing."""
    found: dict[int, list[TrajectoryGroup]] = {}
    config = recipe(ahead, replay={"name": recorded(found)}, checkpoint=STEADY)
    run = train(config, tmp_path / "run")
    assert sorted(found) == [1, 2, 3, 4, 5]
    for update, groups in found.items():
        version = max(1, update - ahead)
        model = load_policy(run / "checkpoints" / f"step-{version - 1:06d}", config)
        tasks = [task for task in draw_tasks(Boxes().tasks("train"), 0, update, 3) for _ in range(4)]
        renderer, settings = renderer_of(model, form_of(config)), training_settings(config)
        expected = play_model(model, renderer, Boxes, tasks, [0, 1, 2, 3] * 3, settings, seed=0, update=update)
        for mine, theirs in zip(episodes_of(groups), expected, strict=True):
            assert (mine.task, mine.member, mine.policy_version) == (theirs.task, theirs.member, version)
            for ours, other in zip(mine.segments, theirs.segments, strict=True):
                assert ours.token_ids.tolist() == other.token_ids.tolist()
            for ours, other in zip(mine.transitions, theirs.transitions, strict=True):
                assert np.allclose(ours.action.logprobs, other.action.logprobs, atol=1e-5)
    metrics = lines(run / "metrics.jsonl")
    assert [line.get("staleness", 0.0) for line in metrics] == [0.0, *([1.0] * 4)] if ahead == 1 else [0, 1, 2, 2, 2]
    assert all("clip_fraction" in line for line in metrics)
    # A token of the first update was played by the policy that learns; later ones are weighed by how that has changed.
    assert "effective_sample_size" not in metrics[0]
    assert all(0.0 < line["effective_sample_size"] < 1.0 for line in metrics[1:])
    assert all("ahead" in line["seconds"] for line in metrics)


def test_episodes_are_played_while_an_update_is_learned_from(tmp_path: Path) -> None:
    """Learning of update 1 waits for an episode of update 2, and that episode waits for learning: neither in vain."""
    learning, playing = threading.Event(), threading.Event()
    waited: list[bool] = []

    class Waiting(Boxes):
        def reset(self, task: Task, seed: int = 0) -> Observation:
            ahead = threading.current_thread() is not threading.main_thread()
            if ahead and task in draw_tasks(Boxes().tasks("train"), 0, 2, 3) and not playing.is_set():
                playing.set()
                waited.append(learning.wait(60))
            return super().reset(task, seed)

    @register("replay", "waits")
    class Waits:
        def __init__(self, plan: object) -> None: ...

        def mix(self, groups: list[TrajectoryGroup], update: int) -> list[TrajectoryGroup]:
            if update == 1:
                waited.append(playing.wait(60))
                learning.set()
            return groups

    register_env("waiting", Waiting)
    config = recipe(1, train={"updates": 2}, env={"name": "waiting"}, replay={"name": "waits"})
    train(config, tmp_path / "run")
    assert waited == [True, True]


class Mixed(Boxes):
    """Boxes whose tasks of the first kind last until the step limit."""

    def step(self, action: str) -> Any:
        return super().step("look" if self.thing == "key" else action)


@pytest.mark.parametrize("slots", [0, 2])
def test_long_episodes_are_learned_from_as_often_as_short_ones(tmp_path: Path, slots: int) -> None:
    """Whatever is played at a time, each update has every episode of its own tasks, those that take longest too."""
    found: dict[int, list[TrajectoryGroup]] = {}
    register_env("mixed", Mixed)
    config = recipe(1, rollout={"ahead": 1, "slots": slots}, env={"name": "mixed"}, replay={"name": recorded(found)})
    train(config, tmp_path / "run")
    for update, groups in found.items():
        tasks = draw_tasks(Mixed().tasks("train"), 0, update, 3)
        assert [(group.task, len(group.trajectories)) for group in groups] == [(task, 4) for task in tasks]
    lengths = {t.task.kind: len(t.transitions) for groups in found.values() for t in episodes_of(groups)}
    assert lengths["key"] == 3


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that were never stopped, by `ahead`."""
    register_worlds()
    folder = tmp_path_factory.mktemp("wholes")
    return {ahead: train(stopped_recipe(ahead), folder / f"run-{ahead}") for ahead in (1, 2)}


def stopped_recipe(ahead: int) -> Config:
    return recipe(ahead, checkpoint={"every": 2, "keep": 9}, auxiliary={"state": {"weight": 0.1}})


def stopped(monkeypatch: pytest.MonkeyPatch, at: int, how: BaseException | None) -> None:
    """Have an update's learning interrupted as by Ctrl-C, or end with an error."""
    from envrl.trainer.idle import IdleUpdates

    observe = IdleUpdates.observe

    def stop(self: IdleUpdates, update: int, *others: Any) -> None:
        observe(self, update, *others)
        if update == at:
            monkeypatch.undo()
            if how is not None:
                raise how
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(IdleUpdates, "observe", stop)


@pytest.mark.parametrize(("ahead", "at"), [(1, 1), (1, 3), (2, 4)])
def test_interrupted_it_plays_to_the_end_what_it_has_begun_and_goes_on_bit_for_bit(
    wholes: dict[int, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ahead: int,
    at: int,
) -> None:
    (tmp_path / "recipe.toml").write_text(dump_config(stopped_recipe(ahead)))
    command = ["train", str(tmp_path / "recipe.toml"), "--run", str(tmp_path / "run")]
    stopped(monkeypatch, at, None)
    assert main(command) == 130
    said = capsys.readouterr().err
    assert f"saved {tmp_path / 'run'}/checkpoints/step-{at - 1:06d}: go on with --resume" in said
    assert main([*command, "--resume"]) == 0
    ours, theirs = essence(tmp_path / "run"), essence(wholes[ahead])
    assert {name: ours[name] for name in theirs} == theirs


@pytest.mark.parametrize("ahead", [1, 2])
def test_after_a_crash_it_goes_on_from_its_checkpoint_bit_for_bit(
    wholes: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    config = stopped_recipe(ahead)
    stopped(monkeypatch, 4, KeyError("crash"))
    with pytest.raises(KeyError, match="crash"):
        train(config, tmp_path / "run")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("play")]
    train(config, tmp_path / "run", resume=True)
    assert essence(tmp_path / "run") == essence(wholes[ahead])


def test_what_goes_wrong_while_playing_ahead_is_said_as_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @register("curriculum", "ends")
    class Ends:
        def __init__(self, tasks: list[Task], plan: Any) -> None:
            self.tasks, self.plan = tasks, plan

        def next(self, update: int) -> list[Any]:
            if update == 3:
                raise ValueError("no more tasks")
            from envrl.types import Assignment

            return [Assignment(self.tasks[update], 4)]

    (tmp_path / "recipe.toml").write_text(dump_config(recipe(1, curriculum={"name": "ends"}, checkpoint=STEADY)))
    assert main(["train", str(tmp_path / "recipe.toml"), "--run", str(tmp_path / "run")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the curriculum 'ends'" in last
    assert "no more tasks" in last
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 2
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()


def test_a_mask_that_would_leave_out_every_token_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "household-demo", "--run", str(tmp_path / "run"), "--objective.importance_mask", "0.5"]
    assert main(command) == 2
    assert "objective.importance_mask must be above 1, or 0 to switch it off, not 0.5" in capsys.readouterr().err
