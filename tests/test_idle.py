"""Nothing is silent: settings without effect are said before a run, idle updates as they end."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boxes import Boxes, grouped, tiny
from chat_models import save_chat_model
from envrl.config.idle import idle_settings
from envrl.config.load import load_recipe
from envrl.config.recipes_index import recipe_names
from envrl.envs.registry import register_env
from envrl.progress import Reporter
from envrl.trainer.idle import IdleUpdates
from envrl.trainer.loop import train
from envrl.types import Action, Observation, Step, StopReason, Trajectory, TrajectoryGroup, Transition


class Hopeless(Boxes):
    """The boxes, all of them empty: every episode is lost, but the demonstrations of the first tasks."""

    played = 0

    def step(self, action: str) -> Step:
        step = super().step(action)
        Hopeless.played += 1
        return step if Hopeless.played < 60 else replace(step, reward=0.0, done=False, success=False)


class Collected(Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_updates_in_which_nothing_is_learned_say_so_and_what_to_do(tmp_path: Path) -> None:
    register_env("empty-boxes", Hopeless)
    reporter = Collected()
    quick = {"every": 0, "free_episodes": 0, "probe_episodes": 0, "split": ("valid_b",)}
    config = tiny(env={"name": "empty-boxes"}, eval=quick, train={"updates": 4}, warm_start={"held_out": 0})
    train(config, tmp_path / "run", reporter=reporter)
    why = "all 12 episodes were lost, with equal returns in each group"
    said = [line for line in reporter.lines if "learn" in line]
    assert said[:2] == [f"update {n}: no row learns from the returns: {why}" for n in (1, 2)]
    assert said[2] == f"update 3: no row learns from the returns: {why}"
    assert said[3].startswith(
        f"the policy has learned nothing in 3 updates in a row, since {why}: begin with a longer warm"
    )
    for remedy in ("rollout.group_size = 4", "env.subgoal_reward", "rollout.temperature above 1", "env.max_steps"):
        assert remedy in said[3]
    assert said[4:] == [f"update 4: no row learns from the returns: {why}"]


def episodes(*outcomes: tuple[float, bool], steps: int = 1) -> list[TrajectoryGroup]:
    task, seen = Boxes().tasks("train")[0], Observation("A room.")
    played = [
        Trajectory(task, 0, (Transition(seen, Action("look"), reward, seen, won, won),) * steps, (), StopReason.DONE)
        for reward, won in outcomes
    ]
    return grouped(played, 4)


@pytest.mark.parametrize(
    ("outcomes", "steps", "settings", "why", "remedy"),
    [
        ([(1.0, True)] * 8, 1, {}, "all 8 episodes were won, with equal returns", "nothing left to learn"),
        ([(0.0, False)] * 8, 1, {"demonstrations": 0}, "all 8 episodes were lost", "a warm start (warm_start.demon"),
        ([(0.0, False)] * 4 + [(1.0, True)] * 4, 1, {}, "equal returns (4 of 8 were won)", "rollout.group_size = 4"),
        ([(0.0, False)] * 8, 0, {}, "the context was full before the first step of all 8", "longer context"),
        ([(0.0, False), (1.0, True)] * 4, 1, {}, "the returns differ", "objective.estimator"),
    ],
)
def test_the_reason_is_that_of_the_episodes(
    outcomes: Any, steps: int, settings: dict[str, Any], why: str, remedy: str
) -> None:
    said: list[str] = []
    idle = IdleUpdates(tiny(warm_start=settings), said.append)
    played = episodes(*outcomes, steps=steps)
    for update in (1, 2):
        idle.observe(update, played, {"rows/policy": 0.0})
    idle.observe(3, played, {"rows/policy": 5.0})  # a row that learns begins the count anew
    for update in (4, 5, 6):
        idle.observe(update, played, {"rows/policy": 0.0, "weight/inverse": 0.1, "rows/inverse": 3.0})
    assert [line.startswith("update") for line in said] == [True] * 5 + [False]
    assert all(why in line for line in said)
    assert remedy in said[-1]
    assert [("auxiliary losses learn" in line) for line in said[:5]] == [False, False, True, True, True]


def test_a_placebo_whose_targets_are_mostly_one_text_is_said_once() -> None:
    said: list[str] = []
    idle = IdleUpdates(tiny(), said.append)
    figures = {"rows/policy": 1.0, "weight/echo": 0.1, "rows/echo": 2.0, "placebo/echo_targets": 8.0}
    for update, same in ((1, 2.0), (2, 3.0), (3, 4.0)):
        idle.observe(update, episodes((1.0, True)), figures | {"placebo/echo_coincidences": same})
    assert said == [
        "update 2: the placebo of echo is hardly one, since 3 of 8 targets are equal to the true ones: most of its "
        "targets are the same text"
    ]


def test_an_auxiliary_loss_without_rows_is_said_once() -> None:
    said: list[str] = []
    idle = IdleUpdates(tiny(), said.append)
    for update in (1, 2):
        figures = {"rows/policy": 1.0, "weight/state": 0.1, "rows/state": 0.0, "weight/echo": 0.1, "rows/echo": 0.0}
        idle.observe(update, episodes((1.0, True)), figures | {"rows/state_too_long": 4.0})
    assert said == [
        "update 1: auxiliary.state.weight has no effect, since no state row is left: all that it yields, 4 examples, "
        "is longer than the model's context",
        "update 1: auxiliary.echo.weight has no effect, since no echo row is left: it yields nothing, or "
        "auxiliary.echo.fraction is too small for so few episodes",
    ]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"auxiliary": {"state": {"placebo": True}}},
            "[auxiliary.state] has no effect, since auxiliary.state.weight = 0: give it a weight, or leave it out",
        ),
        (
            {"auxiliary": {"state": {"weight": 0.1, "fraction": 0.0}}},
            "auxiliary.state.weight = 0.1 has no effect, since auxiliary.state.fraction = 0 leaves no rows",
        ),
        (
            {"auxiliary": {"inverse": {"weight": 0.2, "schedule_updates": 1}}, "train": {"updates": 9}},
            "auxiliary.inverse.weight = 0.2 is 0 from update 2 of 9 on, since auxiliary.inverse.schedule_updates = 1",
        ),
        (
            {"auxiliary": {"echo": {"weight": 0.1, "every": 10}}, "train": {"updates": 9}},
            "auxiliary.echo.weight = 0.1 has no effect, since auxiliary.echo.every = 10 is above train.updates = 9",
        ),
        (
            {"warm_auxiliary": {"echo": {"weight": 0.5}}, "warm_start": {"demonstrations": 0}},
            "warm_start.auxiliary.echo.weight = 0.5 has no effect, since warm_start.demonstrations = 0",
        ),
        (
            {"warm_auxiliary": {"inverse": {"weight": 0.5, "fraction": 0.0}}},
            "since warm_start.auxiliary.inverse.fraction = 0",
        ),
        (
            {"owned": {"regularizer.epo.upper": 1.5}},
            "[regularizer.epo] has no effect, since regularizer.epo.weight = 0: give it a weight, or leave it out",
        ),
        ({"owned": {"reward.overlong.limit": 99}}, "[reward.overlong] has no effect, since reward.overlong.weight = 0"),
        (
            {"objective": {"kl_estimator": "k2"}},
            "objective.kl_estimator = 'k2' and objective.kl_in = 'loss' have no effect, since objective.kl_weight = 0",
        ),
    ],
)
def test_a_loss_that_cannot_learn_is_said_before_the_run(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    (said,) = idle_settings(tiny(**settings))
    assert sentence in said
    config = tiny(**settings, eval={"split": ("none",)})
    with pytest.raises(Exception, match="boxes has no split 'none'"):  # nothing is said of a run that cannot be
        train(config, tmp_path / "run")


def test_recipes_that_ship_have_nothing_idle() -> None:
    assert {name: list(idle_settings(load_recipe(name))) for name in recipe_names()} == {n: [] for n in recipe_names()}


def test_a_chat_model_in_marks_without_a_warm_start_is_said_before_the_run(tmp_path: Path) -> None:
    folder = save_chat_model("llama", tmp_path / "chat")
    quick = {"every": 0, "free_episodes": 0, "probe_episodes": 0, "split": ("valid_b",)}
    config = tiny(
        model={"path": str(folder)}, train={"updates": 0}, eval=quick, warm_start={"demonstrations": 0, "held_out": 0}
    )
    with pytest.warns(
        UserWarning, match=r"is a chat model, and rollout.format = 'marks' asks it in marks that it never"
    ):
        run = train(config, tmp_path / "run")
    taught = replace(config, model=replace(config.model, path=str(run / "warm_start")))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is a chat model")  # what it has saved knows the marks
        train(taught, tmp_path / "again")
